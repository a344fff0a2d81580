"""Where models come from, and what is refused."""

import hashlib
import zipfile

import pytest

from lib import models, packaged_model
from tests import tiny


def test_a_wrong_name_says_what_would_work():
    with pytest.raises(ValueError, match="packaged model"):
        models.resolve("no-such-model")
    with pytest.raises(ValueError, match="packaged model"):
        models.resolve("/nowhere/at/all")
    assert (
        models.resolve("meta-llama/Meta-Llama-3.1-8B-Instruct")
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
