"""Where models come from, and what is refused."""

import hashlib
import json
import shutil
import zipfile

import pytest
import torch
import transformers

from lib import attention, models, packaged_model
from lib.training import train
from tests import tiny


def test_a_wrong_name_says_what_would_work():
    with pytest.raises(ValueError, match="packaged model"):
        models.locate("no-such-model")
    with pytest.raises(ValueError, match="packaged model"):
        models.locate("/nowhere/at/all")
    assert (
        models.locate("meta-llama/Meta-Llama-3.1-8B-Instruct")
        == "meta-llama/Meta-Llama-3.1-8B-Instruct"
    )


def test_the_key_follows_weights_template_and_type(tmp_path):
    name = tiny.checkpoint(tmp_path / "model")
    keys = {
        models.key(name, "float32"),
        models.key(name, "bfloat16"),
        models.key(tiny.checkpoint(tmp_path / "b", seed=1), "float32"),
    }
    (tmp_path / "model" / "chat_template.jinja").write_text(tiny.MARKED)
    keys.add(models.key(name, "float32"))
    assert len(keys) == 4


def test_a_wheel_with_another_hash_is_not_opened(tmp_path, monkeypatch):
    def download(command, **options):
        with zipfile.ZipFile(
            f"{command[command.index('--dest') + 1]}/some-1-py3-none-any.whl", "w"
        ) as archive:
            archive.writestr("x", "y")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(packaged_model.subprocess, "run", download)
    with pytest.raises(ValueError, match="not opened"):
        packaged_model.download_wheel("some==1", "0" * 64, tmp_path)
    right = hashlib.sha256((tmp_path / "some-1-py3-none-any.whl").read_bytes()).hexdigest()
    assert (
        packaged_model.download_wheel("some==1", right, tmp_path).name == "some-1-py3-none-any.whl"
    )


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    failed = type("Done", (), {"returncode": 1, "stderr": "no route"})
    monkeypatch.setattr(packaged_model.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(RuntimeError, match="check the network"):
        packaged_model.download_wheel("some==1", "0" * 64, tmp_path)


def test_a_tokenizer_without_chat_template_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    tiny.checkpoint(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no chat template"):
        models.load_tokenizer(str(tmp_path / "model"))


def change(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))


def test_a_checkpoint_that_cannot_be_compressed_is_refused_with_what_to_do(tmp_path):
    from safetensors.torch import load_file, save_file

    base = tiny.checkpoint(tmp_path / "model")

    def copy(name):
        return shutil.copytree(base, tmp_path / name)

    change(other := copy("other"), "model_type", "gpt2")
    change(untied := copy("untied"), "tie_word_embeddings", False)
    change(quantised := copy("quantised"), "quantization_config", {"quant_method": "awq"})
    (mute := copy("mute")).joinpath("tokenizer.json").unlink()
    for folder, message in (
        (other, "Start from a Llama"),
        (untied, "no lm_head.weight"),
        (mute, "no tokenizer"),
        (quantised, "already quantised .awq"),
        (tmp_path, "no config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            models.llama_shape(folder)
    weights = load_file(copy("two") / "model.safetensors")
    head = weights["model.embed_tokens.weight"] + 1
    save_file(
        {**weights, "lm_head.weight": head},
        tmp_path / "two" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="differs from the embeddings"):
        models.llama_shape(tmp_path / "two")
    change(tmp_path / "two", "tie_word_embeddings", False)
    assert models.llama_shape(tmp_path / "two")["tied"] is False


def test_the_shape_of_a_llama_comes_from_its_config_too(tmp_path):
    folder = tmp_path / "model"
    tiny.checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    assert models.llama_shape(config) == models.llama_shape(folder)
    with pytest.raises(ValueError, match="is a 'gpt2' model; .* Start from a Llama"):
        models.llama_shape(config | {"model_type": "gpt2"})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_rounded_while_it_computes_in_float32(tmp_path, dtype):
    """Against from_pretrained in `dtype` and .float(), which is what rounding by hand is."""
    name = tiny.checkpoint(tmp_path / "model")
    model, _ = models.load(name, "float32", weights=dtype)
    by_hand = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    for mine, theirs in zip(model.parameters(), by_hand.float().parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)
    assert not model.training and model.config._attn_implementation == attention.ATTENTION


def test_an_adapter_is_switched_on_and_not_merged(tmp_path):
    name = tiny.checkpoint(tmp_path / "model")
    model, tokenizer = models.load(name, "float32")
    adapted = train.add_lora(model, 4, 8, 0.0, 1)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    again, _ = models.load(name, "float32", adapter=tmp_path / "adapter")
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        on, off = again(ids).logits, models.load(name, "float32")[0](ids).logits
        with again.disable_adapter():
            assert torch.equal(again(ids).logits, off)
        assert torch.equal(on, adapted.eval()(ids).logits) and not torch.equal(on, off)
    assert not again.training


def test_four_bits_round_the_linears_and_keep_their_layout_where_they_are_trained(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    name = tiny.checkpoint(tmp_path / "model")
    for trainable in (False, True):
        model, _ = models.load(name, "float32", four_bit=True, trainable=trainable)
        linears = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
        assert len(linears) == 7 * model.config.num_hidden_layers
        assert {m.weight.quant_type for m in linears} == {"nf4"}
        assert model.get_input_embeddings().weight.dtype == torch.float32
        if trainable:
            assert not any(m.support_avx512bf16_for_cpu for m in linears)
    with pytest.raises(AssertionError, match="not a float type"):
        models.load(name, "int8")


@pytest.mark.slow
def test_the_packaged_model_is_whole_and_its_tokenizer_repaired():
    """SmolLM2 splits digits one by one, ends turns with <|im_end|>, and knows that Paris is in
    France."""
    from lib.generation import generate

    model, tokenizer = models.load("smollm2-135m-instruct")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.tokenize("x = 1234") == ["x", "Ġ=", "Ġ", "1", "2", "3", "4"]
    text = "naïve “quotes” 12.5 % \t tab\n\n  two  spaces "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    answer = generate.generate(
        model, tokenizer, ["What is the capital of France?"], max_new_tokens=16
    )[0][0]["text"]
    assert "Paris" in answer
