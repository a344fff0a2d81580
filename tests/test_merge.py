"""Merge and its audit, and the refusals that keep the audit honest."""

import json

import pytest

from lib import models
from lib.training import merge, train
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny base and an adapter with a visible, random update."""
    import torch

    folder = tmp_path_factory.mktemp("merge")
    base = tiny.checkpoint(folder / "base")
    model, tokenizer = models.load(base, "float32")
    adapted = train.add_lora(model, 4, 8, 0.0, 1)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    train.save_adapter(
        adapted, tokenizer, folder / "adapter", train.base_record(base, "float32", "")
    )
    return base, folder / "adapter", folder


SEQUENCES = [[5, 9, 40, 41, 100, 7], [200, 3, 3, 90]]


def test_merged_in_the_bases_precision_equals_the_adapter(trained):
    base, adapter, folder = trained
    merged = merge.merge(base, adapter, folder / "merged", "float32", "float32")
    reference = models.load(base, "float32", adapter=adapter)[0]
    rows = merge.compare_logits(reference, models.load(str(merged), "float32")[0], SEQUENCES)
    assert max(row["max_abs"] for row in rows) < 1e-3 and all(
        row["same_top"] == row["positions"] for row in rows
    )
    base_rows = merge.compare_logits(reference, models.load(base, "float32")[0], SEQUENCES)
    assert min(row["kl"] for row in base_rows) > 1e-3  # the update is there to be lost
    rounded = merge.merge(base, adapter, folder / "rounded", "float32", "bfloat16")
    rounding = merge.compare_logits(
        reference, models.load(str(rounded), "float32", weights="bfloat16")[0], SEQUENCES
    )
    assert max(row["max_abs"] for row in rows) < max(row["max_abs"] for row in rounding)


def test_the_merged_weights_are_base_plus_scaled_product(trained):
    """Oracle: W + alpha / r * B @ A computed from the files."""
    from safetensors.torch import load_file

    base, adapter, folder = trained
    merged = load_file(
        merge.merge(base, adapter, folder / "again", "float32", "float32") / "model.safetensors"
    )
    before = load_file(f"{base}/model.safetensors")
    low_rank = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    a, b = (low_rank[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert (
        merged[f"{name}.weight"] - (before[f"{name}.weight"] + 8 / 4 * b @ a)
    ).abs().max() < 1e-5
    norms = [
        row
        for row in merge.delta_norms(base, adapter, "float32")
        if row["layer"] == 1 and row["module"] == "down_proj"
    ]
    assert norms[0]["delta"] == pytest.approx(float((2 * b @ a).norm()), rel=1e-4)


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    _, adapter, _ = trained
    other = tiny.checkpoint(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="was trained on"):
        merge.merge(other, adapter, tmp_path / "merged", "float32", "float32")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_without_a_record_or_from_a_quantised_base_is_refused(trained, tmp_path):
    base, adapter, _ = trained
    with pytest.raises(ValueError, match="training.json"):
        merge.check_base(tmp_path, base)
    record = json.loads((adapter / "training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps({**record, "base_quantised": True}))
    with pytest.raises(ValueError, match="quantised"):
        merge.check_base(tmp_path, base)


def test_a_quantised_base_is_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    models.require_full_precision(folder)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised .bitsandbytes"):
        models.require_full_precision(folder)


def test_integer_weights_are_refused_even_when_the_config_is_silent(tmp_path):
    import torch
    from safetensors.torch import save_file

    folder = tiny.checkpoint(tmp_path / "model")
    save_file(
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4, dtype=torch.uint8)},
        tmp_path / "model" / "x.safetensors",
    )
    with pytest.raises(ValueError, match="U8"):
        models.require_full_precision(folder)


def test_merging_through_four_bit_loses_what_the_honest_merge_keeps(trained):
    pytest.importorskip("bitsandbytes")
    base, adapter, folder = trained
    merged = merge.merge(base, adapter, folder / "third", "float32", "float32")
    reference = models.load(base, "float32", adapter=adapter)[0]
    honest = merge.compare_logits(reference, models.load(str(merged), "float32")[0], SEQUENCES)
    wrong = merge.compare_logits(
        reference, merge.merge_through_four_bit(base, adapter, "float32"), SEQUENCES
    )
    assert sum(row["kl"] for row in wrong) > 100 * sum(row["kl"] for row in honest)
