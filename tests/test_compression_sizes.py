"""The size ledger against files of known content, the planner against published sizes of Llama GGUF
files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lib.compression import gguf_types, planner, sizes

LLAMA_32_1B = planner.LLAMA_31_8B | {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "head_dim": 64,
    "tie_word_embeddings": True,
}

# llama.cpp, tools/quantize/README.md: bits a weight of Llama-3.1-8B, tensors only, made without
# importance matrix where the type allows it.
PUBLISHED_8B = {
    "IQ1_S": 2.0042,
    "IQ1_M": 2.1460,
    "IQ2_XXS": 2.3824,
    "IQ2_XS": 2.5882,
    "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548,
    "IQ3_S": 3.6606,
    "IQ3_M": 3.7628,
    "IQ4_XS": 4.4597,
    "IQ4_NL": 4.6818,
    "Q2_K": 3.1593,
    "Q3_K_S": 3.6429,
    "Q3_K_L": 4.2979,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "Q6_K": 6.5633,
    "Q8_0": 8.5008,
    "F16": 16.0005,
}
# MB on disk with their last digit: huggingface.co/bartowski/Llama-3.2-1B-Instruct-GGUF, importance
# matrix used
PUBLISHED_1B = {
    "F16": (2480, 10),
    "Q8_0": (1320, 10),
    "Q6_K": (1020, 10),
    "Q5_K_M": (910, 10),
    "Q4_K_M": (808, 1),
    "Q4_K_S": (776, 1),
    "IQ3_M": (657, 1),
}
PUBLISHED_FILES_8B = {"Q5_K_M": 5730, "Q5_K_S": 5600, "Q4_K_M": 4920, "Q6_K": 6600, "Q8_0": 8540}


def llama(config=planner.LLAMA_31_8B):
    return gguf_types.architecture(config)


@pytest.mark.parametrize("ftype", PUBLISHED_8B)
def test_bits_a_weight_of_the_8b_are_the_published_ones(ftype):
    size = gguf_types.size(llama(), ftype, imatrix=ftype in gguf_types.NEEDS_IMATRIX)
    assert 8 * size["tensor_bytes"] / size["parameters"] == pytest.approx(
        PUBLISHED_8B[ftype], rel=1e-4
    )


def test_files_of_the_8b_and_the_1b_are_within_one_per_cent():
    for ftype, published in PUBLISHED_FILES_8B.items():
        assert gguf_types.size(llama(), ftype)["bytes"] / 1e6 == pytest.approx(
            published, rel=0.01
        ), ftype
    for ftype, (published, digit) in PUBLISHED_1B.items():
        found = gguf_types.size(llama(LLAMA_32_1B), ftype)["bytes"] / 1e6
        assert abs(found - published) <= 0.01 * published + digit / 2, ftype
    assert gguf_types.parameters(llama()) == 8_030_261_248
    assert gguf_types.parameters(llama(LLAMA_32_1B)) == 1_235_814_400


def test_rows_that_are_no_multiple_of_256_fall_back_and_are_counted():
    arch = llama(
        planner.LLAMA_31_8B
        | {
            "hidden_size": 576,
            "head_dim": 64,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        }
    )
    types = gguf_types.types(arch, "Q4_K_M")
    assert types["blk.10.attn_q.weight"] == "Q5_0" and types["token_embd.weight"] == "Q8_0"
    assert types["blk.10.ffn_down.weight"] in ("Q4_K", "Q6_K")  # its rows are 1,536 wide
    assert gguf_types.size(arch, "Q4_K_M")["fallbacks"] == 30 * 6
    assert gguf_types.size(llama(), "Q4_K_M")["fallbacks"] == 0
    assert "Q4_K_M 180" in gguf_types.fallback_warning(arch, ["F16", "Q4_K_M"])
    assert gguf_types.fallback_warning(llama(), ["Q4_K_M"]) == ""


def test_another_architecture_and_an_unknown_type_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="knows Llama alone"):
        gguf_types.architecture({"model_type": "qwen2", "hidden_size": 8})
    with pytest.raises(ValueError, match="Q5_K_M"):
        gguf_types.types(llama(), "Q5_K_XL")


def test_routes_never_exceed_the_budget_and_no_type_alone_reaches_it():
    rows = planner.routes(llama(), planner.PLAN_BUDGET)
    assert all(row["bytes"] <= planner.PLAN_BUDGET for row in rows if row["fits"])
    assert not any(row["fits"] for row in rows if row["way"] == "as it is")
    assert [row["fits"] for row in rows] == sorted((row["fits"] for row in rows), reverse=True)
    best = rows[0]
    assert best["fits"] and 0 < best["kept"] < 0.3 and "arXiv" in best["known"]
    assert best["heads"] == 4 * best["kv_heads"], "the ratio of grouped-query attention holds"
    generous = planner.routes(llama(), 9_000_000_000, ("Q8_0",))
    assert generous[0]["way"] == "as it is" and generous[0]["kept"] == 1


def test_a_larger_budget_never_keeps_less():
    kept = [
        planner.routes(llama(), budget, ("Q2_K",))[0]["kept"]
        for budget in (400_000_000, 520_000_000, 900_000_000)
    ]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_of_the_routes_the_best_of_each_way_and_type_is_shown_and_findings_are_counted():
    routes = planner.routes(llama(), planner.PLAN_BUDGET, ("Q2_K", "IQ1_S"))
    best = planner.best_routes(routes, ("Q2_K", "IQ1_S"))
    pairs = [(row["way"], row["ftype"]) for row in best]
    assert len(pairs) == len(set(pairs)) and all(row["fits"] for row in best)
    for row in best:
        rivals = [
            r for r in routes if r["fits"] and (r["way"], r["ftype"]) == (row["way"], row["ftype"])
        ]
        assert row["kept"] == max(rival["kept"] for rival in rivals)
    for finding in planner.known_table(best):
        spoken = sum(finding["known"] in row["known"] for row in best)
        assert finding["speaks of"] == f"{spoken} of {len(best)} routes"


def test_sparsity_pays_only_in_types_that_keep_zeros():
    assert planner.packed_bits("Q5_K", 0.65) == planner.packed_bits("Q5_K", 0.0) == 5.5
    assert planner.packed_bits("Q5_0", 0.65) < 4 < planner.packed_bits("Q5_0", 0.0)
    dense, sparse = planner.sparse_choice(0.0, 4.6), planner.sparse_choice(0.65, 4.6)
    assert sparse["keeps_zeros"] and sparse["bits"] > dense["bits"]
    with pytest.raises(ValueError, match="the least is"):
        planner.sparse_choice(0.65, 0.5)


def test_ledger_of_a_folder_counts_every_byte_once(tmp_path):
    from safetensors.numpy import save_file

    embed = np.zeros((10, 4), np.float16)
    save_file(
        {
            "model.embed_tokens.weight": embed,
            "model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float16),
            "model.layers.0.mlp.up_proj.weight": np.ones((8, 4), np.float32),
            "model.layers.0.input_layernorm.weight": np.ones(4, np.float32),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text("{}")
    found = sizes.measure(tmp_path)
    assert found["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert sum(entry["bytes"] for entry in found["kinds"].values()) == found["bytes"]
    assert {kind: entry["parameters"] for kind, entry in found["kinds"].items()} == {
        "vocabulary": 40,
        "attention": 16,
        "mlp": 32,
        "norms": 4,
        "metadata": 0,
    }
    assert found["bits_per_weight"] == 8 * found["bytes"] / 92
    assert found["kinds"]["vocabulary"]["bound_bytes"] == 0, "constant weights need no bytes"
    packed = {"bytes": 2_000_000, "kinds": {"packed": {"bytes": 2_000_000}}}
    shown = {row["MB"]: row for row in sizes.table({"folder": found, "packed": packed})}
    assert list(shown) == [*found["kinds"], "packed", "all", "bits a weight", "bound / bytes"]
    assert shown["all"]["packed"] == shown["packed"]["packed"] == "2.00"
    assert shown["packed"]["folder"] == "" and shown["bits a weight"]["packed"] == ""


def test_packed_int4_of_compressed_tensors_counts_the_weights_it_stands_for(tmp_path):
    from safetensors.numpy import save_file

    prefix = "model.layers.0.mlp.up_proj."
    save_file(
        {
            prefix + "weight_packed": np.zeros((8, 2), np.int32),
            prefix + "weight_scale": np.ones((8, 1), np.float16),
            prefix + "weight_shape": np.array([8, 16], np.int64),
        },
        tmp_path / "model.safetensors",
    )
    found = sizes.measure(tmp_path)
    assert found["parameters"] == 128 and found["kinds"]["mlp"]["bytes"] == 8 * 2 * 4 + 8 * 2 + 16


def test_the_bound_is_the_entropy_of_the_symbols():
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 256, 1 << 18, dtype=np.uint8)
    assert sizes.order0_bytes(uniform, 1) == pytest.approx(uniform.size, rel=1e-3)
    rare = (rng.random(1 << 18) < 0.1).astype(np.uint8)
    expected = rare.size * -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) / 8
    assert sizes.order0_bytes(rare, 1) == pytest.approx(expected, rel=0.02)
    pair = np.repeat(
        uniform[: 1 << 16], 2
    )  # the two bytes of a symbol are equal: one symbol of 8 bits
    assert sizes.order0_bytes(pair, 2) == pytest.approx(pair.size / 2, rel=0.01)
    assert sizes.order0_bytes(pair[:0], 2) == 0


def test_what_is_no_artefact_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sizes.measure(tmp_path / "none")
    with pytest.raises(ValueError, match="no weights"):
        sizes.measure(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"what")
    with pytest.raises(ValueError, match="neither"):
        sizes.measure(tmp_path / "x.bin")
    header = json.dumps({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "bad.safetensors").write_bytes((10**9).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="claims"):
        sizes.measure(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("blk.3.attn_norm.weight", "norms"),
        ("blk.3.attn_q.weight", "attention"),
        ("output.weight", "vocabulary"),
        ("blk.0.ffn_down.weight", "mlp"),
        ("rope_freqs.weight", "other"),
        ("model.layers.1.mlp.gate_proj.weight", "mlp"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "adapter"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_q.weight.lora_b", "adapter"),
        ("model.layers.0.self_attn.o_proj.weight", "attention"),
    ],
)
def test_kinds(name, kind):
    assert gguf_types.kind_of(name) == kind
