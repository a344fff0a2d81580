"""Teacher-forced losses: against the model's own, whatever the batch, with and without adapter."""

import datasets
import numpy as np
import pytest
import torch

from lib import models
from lib.training import losses, train
from tests import tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return models.load(tiny.checkpoint(tmp_path_factory.mktemp("losses") / "model"), "float32")


def examples():
    draw = np.random.default_rng(0)
    rows = []
    for length in (9, 32, 20):
        ids = draw.integers(3, 250, length).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * 5 + ids[5:], "length": length})
    return datasets.Dataset.from_list(rows)


def own(model, row):
    with torch.inference_mode():
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        return float(model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("batch_tokens", [1, 64, 2048])
def test_losses_and_perplexity_equal_the_model_s_own(loaded, batch_tokens):
    model, tokenizer = loaded
    rows = examples()
    measured = losses.losses(model, rows, tokenizer.pad_token_id, batch_tokens=batch_tokens)
    assert measured["tokens"] == [4, 27, 15]
    expected = [own(model, row) for row in rows]
    assert losses.means(measured) == pytest.approx(expected, rel=1e-4)
    total = np.exp(sum(measured["nats"]) / sum(measured["tokens"]))
    assert losses.perplexity(measured, 0)["value"] == pytest.approx(total, rel=1e-6)
    share = sum(measured["right"]) / sum(measured["tokens"])
    assert losses.next_token(measured, 0)["value"] == pytest.approx(share)
    assert losses.next_token(measured, 0)["unit"] == "share"


def test_an_adapter_counts_and_the_mode_of_the_model_stays(tmp_path):
    model, tokenizer = models.load(tiny.checkpoint(tmp_path / "model"), "float32")
    adapted = train.add_lora(model, 4, 8, 0.5, 1)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.train()
    measured = losses.losses(adapted, examples(), tokenizer.pad_token_id)
    assert adapted.training
    adapted.eval()
    expected = [own(adapted, row) for row in examples()]
    assert losses.means(measured) == pytest.approx(expected, rel=1e-4)
    with adapted.disable_adapter():
        off = losses.losses(adapted, examples(), tokenizer.pad_token_id)
    assert np.abs(losses.means(off) - losses.means(measured)).min() > 1e-5
