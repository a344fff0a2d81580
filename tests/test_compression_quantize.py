"""4-bit checkpoints: plain rounding against numpy, reload from disk, group sizes that cannot be."""

import numpy as np
import pytest

from lib import models
from lib.compression import quantize, sizes
from tests import tiny

torch = pytest.importorskip("torch")
SEQUENCES = [[3 + (7 * i * j + 3 * i + j) % 256 for i in range(32)] for j in range(8)]
SETTINGS = {
    "bits": 4,
    "group": 32,
    "symmetric": False,
    "awq_grid": 4,
    "dtype": "float32",
    "compute_dtype": "float32",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("quantize") / "base")


def rounded(weight, group: int, symmetric: bool):
    """Oracle: round to the nearest of 16 levels a group, as compressed-tensors spaces them."""
    parts = weight.reshape(weight.shape[0], -1, group)
    if symmetric:
        scale = np.abs(parts).max(-1, keepdims=True) / 7.5
        return (np.clip(np.round(parts / scale), -8, 7) * scale).reshape(weight.shape)
    low, high = (
        np.minimum(parts.min(-1, keepdims=True), 0),
        np.maximum(parts.max(-1, keepdims=True), 0),
    )
    scale = (high - low) / 15
    zero = np.clip(np.round(-8 - low / scale), -8, 7)
    return ((np.clip(np.round(parts / scale + zero), -8, 7) - zero) * scale).reshape(weight.shape)


@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_rounding_equals_numpy_s_after_a_reload(base, symmetric, tmp_path):
    tokenizer = models.load_tokenizer(base)
    settings = SETTINGS | {"symmetric": symmetric}
    quantize.quantise(base, tokenizer, [], "rtn", settings, tmp_path / "rtn", tmp_path / "log")
    before, after = (
        models.load(base, "float32")[0],
        quantize.reload(tmp_path / "rtn", "float32"),
    )
    for layer in (0, 1):
        for part in ("mlp.down_proj", "self_attn.o_proj"):
            weights = [
                m.model.layers[layer].get_submodule(part).weight.detach().numpy()
                for m in (before, after)
            ]
            assert np.abs(weights[1] - rounded(weights[0], 32, symmetric)).max() < 1e-6
    assert "lm_head.weight" not in models.tensor_names(tmp_path / "rtn"), (
        "one shared table, stored once"
    )
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)


def test_every_method_is_written_reloaded_weighed_and_compared_and_not_done_twice(base, tmp_path):
    import datasets

    tokenizer = models.load_tokenizer(base)
    examples = datasets.Dataset.from_list(
        [{"input_ids": ids, "labels": [-100] * 4 + ids[4:], "length": 32} for ids in SEQUENCES[:3]]
    )
    settings = SETTINGS | {"dtype": "bfloat16"}
    asked = []

    def run():
        return quantize.run(
            list(quantize.METHODS),
            base,
            "key",
            tokenizer,
            SEQUENCES,
            SEQUENCES[:2],
            examples,
            settings,
            tmp_path,
            lambda system: asked.append((system["name"], system["key"], system["loaded"][0].dtype)),
        )

    rows = run()
    assert [row["name"] for row in rows] == [quantize.SIXTEEN, *quantize.METHODS]
    assert [name for name, _, _ in asked] == [row["system"] for row in rows]
    assert [key for _, key, _ in asked] == [row["stamp"] for row in rows]
    sizes_on_disk = {
        row["name"]: sizes.measure(tmp_path / row["system"], False)["bytes"] for row in rows[1:]
    }
    assert {row["name"]: row["bytes"] for row in rows[1:]} == sizes_on_disk
    assert len({row["kinds"]["mlp"] for row in rows[1:]}) == 1, (
        "one format, one size of the linears"
    )
    for row in rows[1:]:
        assert (
            row["kinds"]["mlp"] < rows[0]["kinds"]["mlp"]
            and row["bits_per_weight"] < rows[0]["bits_per_weight"]
        )
        assert sum(part["kl"] for part in row["compared"]) > 0 and len(row["compared"]) == 2
    assert {entry["type"] for entry in quantize.stored_layer(tmp_path / "awq")} >= {
        "int32",
        "bfloat16",
    }
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert (
        run() == rows
        and len(asked) == len(rows)
        and stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    )


def test_a_group_that_does_not_divide_a_width_is_refused_with_the_nearest_that_do(base, tmp_path):
    shape = {"hidden": 576, "intermediate": 1536, "heads": 9, "head_dim": 64}
    with pytest.raises(ValueError, match="128 does not divide the hidden size 576.*: 96 or 192"):
        quantize.check_group_size(128, shape)
    quantize.check_group_size(64, shape)
    with pytest.raises(ValueError, match="group size 48 does not divide"):
        tokenizer, settings = models.load_tokenizer(base), SETTINGS | {"group": 48}
        quantize.quantise(base, tokenizer, [], "rtn", settings, tmp_path / "x", tmp_path / "log")
    assert not (tmp_path / "x").exists()


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="choose from rtn, gptq, awq"):
        quantize.recipe("squeeze", 4, 32, False, 4, tmp_path / "log")
    with pytest.raises(ValueError, match="at least 3"):
        quantize.recipe("awq", 4, 32, False, 2, tmp_path / "log")
