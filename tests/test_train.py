"""Training: what carries loss, what a killed run repeats, what an adapter remembers of its base."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import models
from lib.files import ROOT, write_jsonl
from lib.training import conversations, losses, streams, throughput, train
from tests import tiny

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
SETTINGS = {
    "epochs": 1,
    "max_steps": 0,
    "learning_rate": 0.01,
    "warmup_share": 0.1,
    "effective_batch": 4,
    "micro_tokens": 100,
    "early_stopping_patience": 0,
    "eval_steps": 3,
    "seed": 3,
    "dtype": "float32",
}


def rows(count: int) -> list[dict]:
    return [
        {
            "id": f"{index:04d}",
            "instruction": f"Add {index} and 1." + " Please." * (index % 5),
            "response": f"It is {index + 1}.",
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("template", [tiny.CHATML, tiny.MARKED])
def test_loss_falls_on_the_assistants_words_alone(template):
    """By hand: of the rendered text only 'Yo<|im_end|>' and 'So long<|im_end|>' carry loss."""
    tokenizer = tiny.tokenizer(template)
    example = conversations.encode(tokenizer, CHAT, 512)
    learned = [run for run in conversations.mask_table(tokenizer, example) if run["loss"]]
    assert [run["text"] for run in learned] == ["Yo<|im_end|>", "So long<|im_end|>"]
    assert [run["tokens"] for run in learned] == [3, 8]  # one token a byte, and the end of turn
    assert tokenizer.decode(example["input_ids"]) == tokenizer.apply_chat_template(
        CHAT, tokenize=False
    )


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = tiny.CHATML.replace(
        "message['content']", "(message['content'] if loop.last else 'x')"
    )
    with pytest.raises(ValueError, match="generation"):
        conversations.encode(tiny.tokenizer(rewriting), CHAT, 512)


def test_cut_conversations_are_counted_and_empty_training_sets_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    write_jsonl(
        tmp_path / "train.jsonl",
        [*rows(3), {"id": "long", "instruction": "x" * 400, "response": "never seen"}],
    )
    data, counts = conversations.dataset(
        tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
    )
    assert counts == {"rows": 4, "truncated": 1, "without_answer": 1} and len(data) == 3
    with pytest.raises(ValueError, match="max_length"):
        conversations.dataset(tmp_path / "train.jsonl", tokenizer, 10, 0, 0, tmp_path / "cache")


def test_a_changed_file_is_read_again_and_the_limit_ignores_file_order(tmp_path):
    tokenizer, path = tiny.tokenizer(), tmp_path / "train.jsonl"
    write_jsonl(path, rows(20))
    some, _ = conversations.dataset(path, tokenizer, 200, 5, 1, tmp_path / "cache")
    write_jsonl(path, rows(20)[::-1])
    again, _ = conversations.dataset(path, tokenizer, 200, 5, 1, tmp_path / "cache")
    assert len(some) == 5 and set(some["id"]) == set(again["id"])
    write_jsonl(path, rows(7))
    assert len(conversations.dataset(path, tokenizer, 200, 0, 1, tmp_path / "cache")[0]) == 7


def test_padding_changes_no_loss(tmp_path):
    """Batched losses against one example at a time computed by hand with log_softmax."""
    import torch

    model, tokenizer = models.load(tiny.checkpoint(tmp_path / "model"), "float32")
    write_jsonl(tmp_path / "train.jsonl", rows(9))
    data, _ = conversations.dataset(
        tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
    )
    batched = losses.means(losses.losses(model, data, tokenizer.pad_token_id))
    for example, loss in zip(data, batched, strict=True):
        with torch.inference_mode():
            nats = -model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        each = [
            nats[i - 1, t].item()
            for i, t in enumerate(example["labels"])
            if t != conversations.IGNORED
        ]
        assert loss == pytest.approx(np.mean(each), abs=1e-4)


def test_the_plain_loss_of_a_flat_batch_and_its_gradient_equal_the_models_own(tmp_path):
    """Whole, cut in pieces, and by the model's own forward on padded rows."""
    model, tokenizer = models.load(tiny.checkpoint(tmp_path / "model"), "float32")
    adapted = train.add_lora(model, 4, 8, 0.0, 1)
    write_jsonl(tmp_path / "train.jsonl", rows(6))
    data, _ = conversations.dataset(
        tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
    )
    flat = streams.flat(list(data))
    items = int((flat["shift_labels"] != conversations.IGNORED).sum())
    assert items == sum(data["answer_tokens"])

    def cut(budget):
        return sum(
            streams.plain_loss(adapted, **p, items=items)
            for p in streams.cut(flat, budget, padded=True)
        )

    padded = conversations.collate(list(data), tokenizer.pad_token_id)
    gradients = []
    for loss in (adapted(**padded).loss, cut(10**6), cut(120)):
        adapted.zero_grad()
        loss.backward()
        gradients.append(
            [p.grad.clone() for p in adapted.parameters() if p.grad is not None] + [loss.detach()]
        )
    assert len(gradients[0]) == 2 * 7 * 2 + 1
    for theirs, *ours in zip(*gradients, strict=True):
        for each in ours:
            assert np.allclose(theirs, each, rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(20, 700), st.booleans())
def test_pieces_hold_every_document_once_and_keep_the_budget(lengths, budget, padded):
    lengths = sorted(lengths, reverse=True)
    runs = streams.pieces(lengths, budget, padded)
    assert [i for first, last in runs for i in range(first, last)] == list(range(len(lengths)))
    for first, last in runs:
        size = lengths[first] * (last - first) if padded else sum(lengths[first:last])
        assert last - first == 1 or size <= budget


def test_every_gpu_gets_as_many_tokens():
    """Four processes: each step's conversations once among them, token counts within one long
    document."""
    lengths = [int(x) for x in np.random.default_rng(0).lognormal(5, 0.8, 512)]
    each = [list(streams.level_sampler(lengths, 64, 4, rank, seed=1)) for rank in range(4)]
    for step in range(8):
        shares = [each[rank][step] for rank in range(4)]
        assert len({i for share in shares for i in share}) == sum(map(len, shares)) == 64
        tokens = [sum(lengths[i] for i in share) for share in shares]
        assert max(tokens) - min(tokens) < 0.1 * sum(tokens) / 4 + max(
            lengths[i] for s in shares for i in s
        )


SCRIPT = """
import sys, time, json
from pathlib import Path
from lib import models
from lib.training import conversations, train
folder, settings, slow = Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
model, tokenizer = models.load(str(folder / "model"), "float32")
data, _ = conversations.dataset(folder / "train.jsonl", tokenizer, 200, 0, 0, folder / sys.argv[4] / "cache")
adapted = train.add_lora(model, 4, 8, 0.2, 1)
probe = lambda: time.sleep(slow) or 0.5
out = folder / sys.argv[4]
result = train.fit(adapted, data, data.select(range(4)), out / "checkpoints", settings, probe, "same")
train.save_adapter(adapted, tokenizer, out / "adapter", train.base_record(str(folder / "model"), "float32", ""))
(out / "result.json").write_text(json.dumps(result))
"""  # noqa: E501


def start(folder: Path, name: str, slow: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(SETTINGS), str(slow), name]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path):
    """SIGKILL after the first checkpoint; losses and adapter of the resumed run equal those of a
    run never stopped."""
    from safetensors.numpy import load_file

    tiny.checkpoint(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", rows(40))
    assert start(tmp_path, "whole", 0).wait(120) == 0
    process = start(tmp_path, "killed", 1.0)
    deadline = time.time() + 90
    while not list((tmp_path / "killed" / "checkpoints").glob("checkpoint-*/complete.json")):
        assert time.time() < deadline and process.poll() is None, (
            "no checkpoint was written before the run ended"
        )
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = tmp_path / "killed" / "checkpoints" / "checkpoint-9999"
    torn.mkdir()  # what a kill in the middle of writing leaves
    assert start(tmp_path, "killed", 0).wait(120) == 0
    whole, resumed = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert resumed["resumed_from"] >= 3 and not torn.exists()
    curve = [
        [(row["step"], row["loss"]) for row in result["history"] if "loss" in row]
        for result in (whole, resumed)
    ]
    assert curve[0] == curve[1] and len(curve[0]) == 10
    assert [score["step"] for score in resumed["probe"]] == [
        score["step"] for score in whole["probe"]
    ]
    assert resumed["tokens"] == whole["tokens"]
    weights = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "killed")
    ]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_other_data_discards_old_checkpoints(tmp_path):
    name = tiny.checkpoint(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", rows(16))
    settings = {**SETTINGS, "eval_steps": 2}
    resumed = []
    for fingerprint in ("one", "one", "two"):
        model, tokenizer = models.load(name, "float32")
        data, _ = conversations.dataset(
            tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
        )
        adapted = train.add_lora(model, 4, 8, 0.0, 1)
        result = train.fit(
            adapted,
            data,
            data.select(range(4)),
            tmp_path / "ck",
            settings,
            None,
            fingerprint,
        )
        resumed.append(result["resumed_from"])
        assert result["finished"] and result["steps"] == 4
    assert resumed == [0, 4, 0]


def test_mfu_is_absent_where_the_peak_is_unknown():
    assert throughput.mfu(1000, 8e9, "AMD EPYC") is None
    assert throughput.mfu(10_000, 8e9, "NVIDIA H100 80GB HBM3") == pytest.approx(
        4 * 8e9 * 1e4 / 989e12
    )


def test_an_estimate_follows_the_measurement_and_is_absent_for_other_sizes(monkeypatch):
    bench = json.loads((ROOT / "tests" / "bench" / "results" / "train_8b.json").read_text())
    speed = {"tokens_per_second": pytest.approx(bench["fit_tok_s"], rel=1e-4)}
    assert {key: bench[key] for key in ("device", "date")} | speed == throughput.MEASURED
    assert "16,368 tokens/s on NVIDIA H100" in throughput.measured_on()
    monkeypatch.setitem(throughput.MEASURED, "tokens_per_second", 18_000.0)
    a100, h100 = throughput.estimates(18_000 * 3600 * 10, int(8.03e9), {"A100": 2.0, "H100": 4.0})
    assert h100 == {"card": "H100", "hours": "10.0", "USD": "40", "speed": "measured"}
    assert a100["hours"] == f"{10 * 989 / 312:.1f}" and "not measured" in a100["speed"]
    assert throughput.estimates(10**9, int(135e6), {"H100": 4.0}) == []


@pytest.mark.slow
def test_two_processes_train_the_adapter_that_one_would(tmp_path):
    """torchrun with two CPU processes: the losses of one process, and the adapter brought back."""
    from lib.training import train_worker

    name = tiny.checkpoint(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", rows(16))
    settings, results, weights = {**SETTINGS, "eval_steps": 10}, [], []
    for processes in (1, 2):
        model, tokenizer = models.load(name, "float32")
        data, _ = conversations.dataset(
            tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
        )
        adapted = train.add_lora(model, 4, 8, 0.0, settings["seed"])
        folder, held_out = tmp_path / f"ck{processes}", data.select(range(4))
        if processes == 1:
            results.append(train.fit(adapted, data, held_out, folder, settings, None, "x"))
        else:
            job = {
                "model": name,
                "base_dtype": "float32",
                "model_revision": "",
                "lora_r": 4,
                "lora_alpha": 8,
                "lora_dropout": 0.0,
                "settings": settings,
                "fingerprint": "x",
            }
            splits = {"train": data, "valid": held_out}
            results.append(train_worker.launch(adapted, splits, folder, job, processes, cpu=True))
        weights.append([p.detach().numpy() for p in adapted.parameters() if p.requires_grad])
    one, two = ([row["loss"] for row in result["history"] if "loss" in row] for result in results)
    assert len(one) == 4 and one == pytest.approx(two, rel=1e-4)
    assert "2 processes" in results[1]["path"] and results[0]["tokens"] == results[1]["tokens"]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*weights, strict=True))
