"""GGUF: the writer against transformers, the quantiser against the plan, the way back, adapters,
and bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from lib.compression import (
    calibration,
    from_gguf,
    gguf_types,
    ladder,
    llamacpp,
    runtime,
    sparse_gguf,
    to_gguf,
)
from lib.files import ROOT
from tests import tiny

PROMPTS = [f"Item {n}: what is {n} + {n}?" for n in range(20)]
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    "order", ["llamacpp.library(); import peft", "import peft; llamacpp.library()"]
)
def test_llama_cpp_and_torch_live_in_one_process_whichever_comes_first(order):
    """Loaded with RTLD_GLOBAL, the wheel's C++ runtime answered for torch's, and the process
    aborted."""
    code = f"from lib.compression import llamacpp; {order}; import torch; torch.ones(2).sum()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("o", "u"), ("i", "s")]


def bpe():
    """The tokenizer of `tiny` with five merges: llama.cpp wants some."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [
        *special,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *("".join(pair) for pair in MERGES),
    ]
    backend = Tokenizer(
        models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=MERGES)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = tiny.CHATML
    return made


def model(folder, **changes):
    """A random Llama with rows of 256, so that K-types fit; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    settings = (
        dict(
            vocab_size=264,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.1,
        )
        | changes
    )
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    bpe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = model(tmp_path_factory.mktemp("plain"))
    return folder, to_gguf.write(folder, folder.parent / "plain-f16.gguf")


def reference(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return loaded(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"rope_parameters": LLAMA3_ROPE},
        {"head_dim": 64, "num_key_value_heads": 8},
    ],
    ids=["tied", "untied", "llama3 rope", "wide heads"],
)
def test_logits_of_the_file_are_those_of_transformers(tmp_path, changes):
    folder = model(tmp_path / "model", **changes)
    path = to_gguf.write(folder, tmp_path / "model.gguf", "F32")
    ids = bpe()("The quick brown fox jumps over the lazy dog, twice, and then a third time. " * 2)[
        "input_ids"
    ]
    with runtime.Gguf(path, threads=1) as loaded:
        found = loaded.logits(ids)
    expected = reference(folder, ids)
    assert len(ids) > 128 and found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_tokens_and_greedy_answers_agree_with_transformers(plain):
    import torch
    from transformers import AutoModelForCausalLM

    folder, path = plain
    tokenizer = bpe()
    chats = [[{"role": "user", "content": each}] for each in PROMPTS]
    texts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in chats
    ]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with runtime.Gguf(path, threads=1, sequences=8, context=2048) as other:
        assert [other.tokenize(text) for text in texts] == rows
        answers = other.generate(rows, max_new_tokens=6)
    for ids, (answer,) in zip(rows, answers, strict=True):
        with torch.inference_mode():
            logits = loaded(torch.tensor([ids + answer["ids"]])).logits[0, len(ids) - 1 : -1]
        chosen = logits[torch.arange(len(answer["ids"])), answer["ids"]]
        # F16 weights may turn a near-tie of a random model, never more than that
        assert (logits.max(1).values - chosen).max() < 0.02 * logits.abs().max()


def test_logprobs_are_those_of_the_sequence_and_batches_change_nothing(plain):
    rows = [bpe()(text)["input_ids"] for text in PROMPTS[:5]]
    with runtime.Gguf(plain[1], threads=1, sequences=4, context=1024) as loaded:
        together = loaded.generate(rows, max_new_tokens=5)
        alone = [loaded.generate([ids], max_new_tokens=5)[0] for ids in rows]
        assert [[s["ids"] for s in row] for row in together] == [
            [s["ids"] for s in row] for row in alone
        ]
        ids, answer = rows[0], together[0][0]
        logprobs = runtime.log_softmax(loaded.logits(ids + answer["ids"], len(ids) - 1))
    written = [float(logprobs[place, token]) for place, token in enumerate(answer["ids"])]
    assert answer["logprobs"][: len(written)] == pytest.approx(written, abs=2e-2)


def test_samples_differ_repeat_and_follow_the_distribution(plain):
    ids = bpe()("a")["input_ids"]
    with runtime.Gguf(plain[1], threads=1, sequences=16, context=1024) as loaded:
        first, again = (
            loaded.generate([ids], max_new_tokens=1, n=400, temperature=1.0, seed=3)[0]
            for _ in "ab"
        )
        other = loaded.generate([ids], max_new_tokens=1, n=400, temperature=1.0, seed=4)[0]
        probabilities = np.exp(runtime.log_softmax(loaded.logits(ids))[-1])
    assert first[0].keys() == {"ids", "finish", "logprobs", "seconds"}
    assert (
        [row["ids"] for row in first]
        == [row["ids"] for row in again]
        != [row["ids"] for row in other]
    )
    top = int(probabilities.argmax())
    share = np.mean([row["ids"] == [top] for row in first])
    expected = float(probabilities[top])
    assert share == pytest.approx(expected, abs=4 * (expected / 400) ** 0.5 + 0.01)


class Killed:
    """A `runtime.Gguf` whose samples stop after `left` of them; counts what it was asked for."""

    def __init__(self, gguf, left):
        self.gguf, self.left, self.count = gguf, left, 0

    def samples(self, *prompts, **settings):
        for finished in self.gguf.samples(*prompts, **settings):
            if self.count == self.left:
                raise KeyboardInterrupt
            self.count += 1
            yield finished


def test_a_killed_generation_goes_on_and_repeats_nothing(plain, tmp_path):
    tokenizer, store = bpe(), tmp_path / "store.jsonl"
    settings = {"n": 3, "temperature": 0.9, "max_new_tokens": 6, "seed": 5, "model_key": "m"}
    prompts = [*PROMPTS[:5], PROMPTS[0]]  # one of them twice: it is computed once
    with runtime.Gguf(plain[1], threads=1, sequences=4, context=1024) as loaded:
        whole = runtime.generate(loaded, tokenizer, prompts, **settings)
        with pytest.raises(KeyboardInterrupt):
            runtime.generate(Killed(loaded, 7), tokenizer, prompts, store=store, **settings)
        with open(store, "a", encoding="utf-8") as handle:
            handle.write('{"key": "torn')
        rest = Killed(loaded, 99)
        resumed = runtime.generate(rest, tokenizer, prompts, store=store, **settings)
        again = runtime.generate(Killed(loaded, 0), tokenizer, prompts, store=store, **settings)
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
    assert rest.count == 15 - 7 and len(keys) == len(set(keys)) == 15
    assert told(resumed) == told(whole) == told(again) and whole[0] == whole[5]
    assert len({row["text"] for row in whole[0]}) > 1, "samples differ"


def told(answers):
    """What no kill may change; log-probabilities move with the rounding of a batch."""
    return [[(row["text"], row["tokens"], row["finish"]) for row in rows] for rows in answers]


def test_losses_on_written_answers_and_the_distance_from_a_source(plain, tmp_path):
    ids = bpe()("What is two and two? It is four, as everybody knows.")["input_ids"]
    examples = [
        {"input_ids": ids[:count], "labels": [-100] * 12 + ids[12:count]} for count in (20, 31)
    ]
    with runtime.Gguf(plain[1], threads=1) as loaded:
        logprobs = [runtime.log_softmax(loaded.logits(e["input_ids"], 11))[:-1] for e in examples]
        np.save(tmp_path / "source.npy", np.concatenate(logprobs))
        sums = runtime.answer_losses(loaded, examples, tmp_path / "source.npy")
        plainly = runtime.answer_losses(loaded, examples)
    assert sums["tokens"] == [8, 19] == sums["same"] and sums["kl"] == pytest.approx([0, 0])
    expected = [
        -sum(rows[place, token] for place, token in enumerate(e["input_ids"][12:]))
        for rows, e in zip(logprobs, examples, strict=True)
    ]
    assert sums["nats"] == pytest.approx(expected, rel=1e-5) == plainly["nats"]
    assert plainly.keys() == {"nats", "tokens", "right", "seconds"}


def test_a_platform_without_a_known_library_is_named(monkeypatch):
    monkeypatch.setattr(llamacpp.sys, "platform", "sunos5")
    with pytest.raises(RuntimeError, match="linux, darwin, not on sunos5"):
        llamacpp.library.__wrapped__()


@pytest.mark.parametrize(
    "ftype",
    ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_M", "IQ2_XXS", "IQ1_S"],
)
@pytest.mark.parametrize("hidden", [256, 288], ids=["rows of 256", "rows of 288"])
def test_the_planned_types_and_bytes_are_those_that_llama_cpp_writes(tmp_path, ftype, hidden):
    folder = model(
        tmp_path / "model",
        hidden_size=hidden,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
    )
    source = to_gguf.write(folder, tmp_path / "f16.gguf")
    weights = {
        name: np.ones(shape[-1], np.float32)
        for name, shape in gguf_types.tensors(arch_of(folder)).items()
    }
    path = llamacpp.quantize(source, tmp_path / "q.gguf", ftype, weights, threads=1)
    found = {tensor.name: tensor.type for tensor in from_gguf.tensor_table(path)}
    assert found == gguf_types.types(arch_of(folder), ftype)
    planned = gguf_types.size(arch_of(folder), ftype)["tensor_bytes"]
    assert planned == sum(tensor.bytes for tensor in from_gguf.tensor_table(path))


def arch_of(folder):
    return gguf_types.architecture(json.loads((folder / "config.json").read_text()))


def test_quantised_weights_come_back_near_and_the_importance_matrix_helps_where_it_points(
    plain, tmp_path
):
    folder, source = plain
    original = {name: values for name, values, _ in from_gguf.weights(source)}
    name = "blk.1.ffn_up.weight"
    important = np.ones(256, np.float32)
    important[:32] = 1000.0  # the first block of 32 channels matters
    errors = {}
    for label, matrix in {"flat": None, "pointed": {name: important}}.items():
        path = llamacpp.quantize(source, tmp_path / f"{label}.gguf", "Q4_K_M", matrix, threads=1)
        back = {key: values for key, values, _ in from_gguf.weights(path)}
        assert back.keys() == original.keys()
        errors[label] = float((((back[name] - original[name]) ** 2) * important).sum())
        assert np.abs(back[name] - original[name]).max() < 0.1 * np.abs(original[name]).max()
    assert errors["pointed"] < errors["flat"]


def test_a_checkpoint_made_from_the_file_is_the_file(plain, tmp_path):
    folder, source = plain
    path = llamacpp.quantize(source, tmp_path / "q.gguf", "Q4_K_M", threads=1)
    back = from_gguf.checkpoint(path, folder, tmp_path / "back")
    ids = bpe()("Is it the same model?")["input_ids"]
    exact = to_gguf.write(back, tmp_path / "again.gguf", "F32")
    with runtime.Gguf(exact, threads=1) as loaded:
        assert np.abs(loaded.logits(ids) - reference(back, ids)).max() < 1e-2
    assert {n: v.tolist() for n, v, _ in from_gguf.weights(path) if "attn_q" in n} == {
        n: v.tolist() for n, v, _ in from_gguf.weights(exact) if "attn_q" in n
    }


def test_the_header_is_read_as_the_gguf_package_reads_it(plain, tmp_path):
    import gguf

    path = llamacpp.quantize(plain[1], tmp_path / "q.gguf", "Q4_K_M", threads=1)
    found = {tensor.name: tensor for tensor in from_gguf.tensor_table(path)}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        mine = found.pop(tensor.name)
        assert (mine.type, mine.bytes, mine.begin) == (
            tensor.tensor_type.name,
            tensor.n_bytes,
            tensor.data_offset,
        )
        assert list(reversed(mine.shape)) == tensor.shape.tolist()
    assert not found


def test_magnitude_zeroes_the_share_of_each_matrix_and_nothing_else(plain, tmp_path):
    path = sparse_gguf.zero_smallest(plain[1], tmp_path / "sparse.gguf", 0.65)
    assert from_gguf.zero_share(path)["all"] == pytest.approx(0.65, abs=0.01)
    before, after = (
        {name: values for name, values, _ in from_gguf.weights(each)} for each in (plain[1], path)
    )
    assert (before["token_embd.weight"] == after["token_embd.weight"]).all()
    kept = after["blk.0.attn_q.weight"] != 0
    assert (before["blk.0.attn_q.weight"][kept] == after["blk.0.attn_q.weight"][kept]).all()
    with pytest.raises(ValueError, match="prune the F16"):
        sparse_gguf.zero_smallest(
            llamacpp.quantize(plain[1], tmp_path / "q.gguf", "Q8_0", threads=1), tmp_path / "x", 0.5
        )


def test_a_file_says_what_it_was_quantised_by_and_sparse_ones_pack(plain, tmp_path):
    assert from_gguf.file_type(plain[1]) == "F16"
    path = llamacpp.quantize(plain[1], tmp_path / "q.gguf", "Q5_K_M", threads=1)
    assert from_gguf.file_type(path) == "Q5_K_M"
    sparse = sparse_gguf.zero_smallest(plain[1], tmp_path / "sparse.gguf", 0.8)
    settings = {"ftype": "Q5_K_M", "imatrix": None, "level": 3, "threads": 1}
    theirs, ours = (
        sparse_gguf.packed_size(sparse, kind, tmp_path, settings) for kind in (None, "Q5_0")
    )
    assert theirs["zeros"] < 0.3 < 0.79 < ours["zeros"]
    assert ours["bytes"] / ours["packed"] > theirs["bytes"] / theirs["packed"]


def test_permutation_is_undone():
    weight = np.arange(32 * 5).reshape(32, 5)
    assert (to_gguf.unpermute(to_gguf.permute(weight, 4), 4) == weight).all()
    assert not (to_gguf.permute(weight, 4) == weight).all()


def test_zeros_survive_in_symmetric_types_only(plain, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder, _ = plain
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in loaded.named_parameters():
            if "proj" in name:
                weight[weight.abs() < weight.abs().quantile(0.65)] = 0
    loaded.save_pretrained(tmp_path / "sparse")
    bpe().save_pretrained(tmp_path / "sparse")
    source = to_gguf.write(tmp_path / "sparse", tmp_path / "sparse.gguf")
    for kind in ("Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q3_K", "Q5_1", "Q4_1", "Q5_K", "Q4_K"):
        path = llamacpp.quantize(
            source, tmp_path / "q.gguf", "Q4_K_M", overrides={"^blk.*": kind}, threads=1
        )
        share = from_gguf.zero_share(path)["all"]
        assert share > 0.64 if kind in gguf_types.KEEPS_ZEROS else share < 0.3, (kind, share)


@pytest.fixture(scope="module")
def adapter(plain, tmp_path_factory):
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "up_proj",
            "gate_proj",
            "down_proj",
        ],
    )
    loaded = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain[0], dtype=torch.float32), config
    )
    for name, weight in loaded.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    loaded.save_pretrained(folder)
    return folder


def test_an_adapter_shifts_the_logits_as_peft_does_and_switches_off_again(plain, adapter, tmp_path):
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    path = to_gguf.write_adapter(adapter, plain[0], tmp_path / "adapter.gguf", "F32")
    base = to_gguf.write(plain[0], tmp_path / "f32.gguf", "F32")
    ids = bpe()("Does the adapter arrive?")["input_ids"]
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(plain[0], dtype=torch.float32), adapter
    )
    with torch.inference_mode():
        expected = loaded(torch.tensor([ids])).logits[0].numpy()
    with runtime.Gguf(base, threads=1, adapters=[path]) as found:
        off = found.logits(ids)
        found.set_adapters([1.0])
        on = found.logits(ids)
        found.set_adapters([0.0])
        assert (found.logits(ids) == off).all(), "off again is the base, bit for bit"
    assert np.abs(off - expected).max() > 0.1, "the adapter does something"
    assert np.abs(on - expected).max() < 0.02 * np.abs(expected).max()


def test_importance_is_the_mean_square_of_what_a_linear_layer_reads(plain):
    import torch

    folder, _ = plain
    rows = [bpe()(text)["input_ids"] for text in PROMPTS[:6]]
    found = calibration.importance(str(folder), rows, 6)
    arch = arch_of(folder)
    wanted = {
        name
        for name, shape in gguf_types.tensors(arch).items()
        if len(shape) > 1 and name.startswith("blk.")
    }
    assert found.keys() == wanted | {"token_embd.weight"}
    assert all(
        values.shape == (gguf_types.tensors(arch)[name][-1],) for name, values in found.items()
    )
    assert (found["blk.0.attn_q.weight"] == found["blk.0.attn_v.weight"]).all(), (
        "they read the same input"
    )
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = []
    loaded.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, i, o: seen.append(i[0][0]))
    with torch.inference_mode():
        for ids in rows:
            loaded(torch.tensor([ids]))
    expected = (torch.cat(seen) ** 2).mean(0).numpy()
    assert found["blk.1.ffn_down.weight"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="6 calibration"):
        calibration.importance(str(folder), rows, 7)


def broken(folder, tmp_path, **changes):
    import shutil

    target = tmp_path / "broken"
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "qwen2"}, "knows Llama"),
        ({"attention_bias": True}, "biases"),
        ({"tie_word_embeddings": False}, "no lm_head"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"vocab_size": 200}, "no row"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_sentence(plain, tmp_path, changes, words):
    folder = broken(plain[0], tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        to_gguf.write(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*")), "nothing half-written stays"


def test_untied_tables_under_a_tied_config_are_refused(tmp_path):
    folder = broken(
        model(tmp_path / "untied", tie_word_embeddings=False), tmp_path, tie_word_embeddings=True
    )
    with pytest.raises(ValueError, match="differs from the embeddings"):
        to_gguf.write(folder, tmp_path / "out.gguf")


def test_a_missing_tokenizer_unknown_splitting_and_a_missing_template_are_refused(plain, tmp_path):
    folder = broken(plain[0], tmp_path)
    original = (folder / "tokenizer.json").read_text()
    changed = json.loads(original)
    changed["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="splitting rules"):
        to_gguf.write(folder, tmp_path / "out.gguf")
    (folder / "tokenizer.json").write_text(original)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        to_gguf.write(folder, tmp_path / "out.gguf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json"):
        to_gguf.write(folder, tmp_path / "out.gguf")


def test_a_tokenizer_without_merges_is_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    with pytest.raises(ValueError, match="no merges"):
        to_gguf.write(folder, tmp_path / "out.gguf")


def test_llama_3_s_splitting_rules_are_known():
    rules = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": to_gguf.LLAMA3_SPLIT},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }
    assert (
        to_gguf.pre_tokenizer(
            {
                "model": {"type": "BPE", "merges": ["a b"]},
                "pre_tokenizer": rules,
                "normalizer": None,
            }
        )
        == "llama-bpe"
    )
    with pytest.raises(ValueError, match="Unigram"):
        to_gguf.pre_tokenizer({"model": {"type": "Unigram"}})


def test_wrong_magic_a_cut_file_and_a_foreign_adapter_are_refused(plain, adapter, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML0000")
    with pytest.raises(ValueError, match="not a GGUF file"):
        runtime.Gguf(tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="not a GGUF file"):
        llamacpp.quantize(tmp_path / "x.gguf", tmp_path / "y.gguf", "Q8_0")
    whole = plain[1].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut"):
        runtime.Gguf(tmp_path / "cut.gguf")
    with pytest.raises(ValueError, match="importance matrix"):
        llamacpp.quantize(plain[1], tmp_path / "y.gguf", "IQ2_XXS")
    with pytest.raises(ValueError, match="unknown"):
        llamacpp.quantize(plain[1], tmp_path / "y.gguf", "Q9_K")
    small = model(tmp_path / "small", hidden_size=64)
    path = to_gguf.write_adapter(adapter, small, tmp_path / "adapter.gguf")
    with pytest.raises(ValueError, match="does not fit"):
        runtime.Gguf(to_gguf.write(small, tmp_path / "small.gguf"), adapters=[path])
    assert not list(tmp_path.glob("*partial*"))


def test_a_prompt_beyond_the_context_is_refused(plain):
    with (
        runtime.Gguf(plain[1], context=64, threads=1) as loaded,
        pytest.raises(ValueError, match="exceed 64 cells"),
    ):
        loaded.generate([list(range(3, 63))], max_new_tokens=10)


def test_a_ladder_s_rows_are_compared_by_curve_bytes_and_divergence():
    rows = [
        {"curve": curve, "ftype": ftype, "bytes": size, "kl": {"value": kl}}
        for curve, ftype, size, kl in (
            ("source", "F16", 100, 0.0),
            ("source", "Q8_0", 50, 0.1),
            ("source", "Q4_K_M", 25, 0.5),
            ("source, no importance matrix", "Q4_K_M", 25, 0.7),
            ("pruned", "F16", 60, 0.2),
            ("pruned", "Q8_0", 30, 0.4),
            ("pruned", "Q4_K_M", 26, 0.6),
        )
    ]
    assert ladder.beaten(rows) == ["Q4_K_M"]
    assert "Of 2 pruned files 1 are beaten" in ladder.pruned_sentence(rows)
    assert "(Q4_K_M)" in ladder.pruned_sentence(rows)
    assert ladder.matrix_gain(rows, ["Q4_K_M", "Q8_0"]) == {"Q4_K_M": pytest.approx(-0.2)}
    assert ladder.get(rows, "pruned", "Q2_K") is None
    assert "one curve stands alone" in ladder.pruned_sentence(rows[:4])
