"""Pruning against oracles: counted zeros, masks computed in numpy, layers dropped by hand, neurons
that do nothing."""

import numpy as np
import pytest

from lib import models
from lib.compression import calibration, grid, measure, prune, recover, structured
from lib.files import write_jsonl
from tests import tiny

torch = pytest.importorskip("torch")
SEQUENCES = [[3 + (7 * i * j + 3 * i + j) % 256 for i in range(32)] for j in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("prune") / "base", layers=3)


@pytest.fixture(scope="module")
def tokenizer(base):
    return models.load_tokenizer(base)


@pytest.fixture
def model(base):
    return models.load(base, "float32")[0]


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor(SEQUENCES)).logits


@pytest.mark.parametrize("method", prune.METHODS)
def test_the_asked_sparsity_is_reached_per_layer_type_and_tables_stay(
    model, tokenizer, method, tmp_path
):
    before = model.get_input_embeddings().weight.detach().clone()
    found = prune.prune(model, tokenizer, SEQUENCES, method, 0.5, 0.75, "", tmp_path / "log")
    assert found["attention"] == pytest.approx(0.5, abs=1e-3) and found["mlp"] == pytest.approx(
        0.75, abs=1e-3
    )
    assert torch.equal(model.get_input_embeddings().weight, before)
    for _, module in prune.linears(model):
        assert torch.isfinite(module.weight).all()
    nonzero = sum(int((module.weight != 0).sum()) for _, module in prune.linears(model))
    every = sum(module.weight.numel() for _, module in prune.linears(model))
    assert prune.bitmask_bytes(model) == 2 * nonzero + every // 8


@pytest.mark.parametrize("share", [0.0, 0.3, 0.65])
def test_magnitude_is_that_of_torch(base, model, share):
    from torch.nn.utils import prune as torch_prune

    theirs = models.load(base, "float32")[0]
    prune._magnitude(model, {"attention": share, "mlp": share}, "")
    for (name, ours), (_, other) in zip(prune.linears(model), prune.linears(theirs), strict=True):
        torch_prune.l1_unstructured(other, "weight", amount=share)
        assert torch.equal(ours.weight, other.weight), name


def test_exactly_as_many_weights_go_as_asked_equal_ones_too():
    sizes = np.array([3, 1, 1, 1, 2, 0], np.float16)
    assert sorted(prune.smallest(sizes, 2)) in ([1, 5], [2, 5], [3, 5])
    assert len(prune.smallest(sizes, 0)) == 0 and len(prune.smallest(sizes, 6)) == 6


@pytest.mark.parametrize("method", prune.METHODS)
def test_two_of_every_four_neighbours_are_zero(model, tokenizer, method, tmp_path):
    prune.prune(model, tokenizer, SEQUENCES, method, 0.5, 0.5, "2:4", tmp_path / "log")
    for name, module in prune.linears(model):
        zeros = (module.weight.reshape(-1, 4) == 0).sum(1)
        assert (zeros == 2).all(), name


def test_nothing_of_the_library_s_noise_reaches_the_reader(model, tokenizer, tmp_path, capfd):
    prune.prune(model, tokenizer, SEQUENCES, "wanda", 0.5, 0.5, "", tmp_path / "log")
    measure.save(model, tokenizer, tmp_path / "out", "float32")
    assert "lm_head.weight" not in models.tensor_names(tmp_path / "out"), (
        "one shared table, stored once"
    )
    assert sorted(path.name for path in (tmp_path / "out").glob("*.yaml")) == [], (
        "no recipe of the library's own"
    )
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == "" and "Sparsifying" in (tmp_path / "log").read_text()


def test_wanda_s_mask_is_weight_times_input_norm_row_by_row(base, tokenizer, tmp_path):
    """Oracle in numpy. Layer 0 sees unpruned inputs; the input of layer 1 has been through the
    pruned layer 0."""
    original, pruned = (models.load(base, "float32")[0] for _ in range(2))
    prune.prune(pruned, tokenizer, SEQUENCES, "wanda", 0.5, 0.5, "", tmp_path / "log")
    for layer in (0, 1):
        seen = []
        linear = pruned.model.layers[layer].self_attn.q_proj
        hook = linear.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].detach())
        )
        logits(pruned)
        hook.remove()
        inputs = seen[0].reshape(-1, linear.in_features).double().numpy()
        weight = original.model.layers[layer].self_attn.q_proj.weight.detach().double().numpy()
        metric = np.abs(weight) * np.sqrt((inputs**2).sum(0))[None]
        mask = np.zeros_like(weight, bool)
        np.put_along_axis(
            mask, np.argsort(metric, 1, kind="stable")[:, : weight.shape[1] // 2], True, 1
        )
        agree = ((linear.weight.detach().numpy() == 0) == mask).mean()
        assert agree > 0.999, (
            layer,
            agree,
        )  # float32 against float64: a tie may fall the other way
        kept = linear.weight.detach().numpy()
        assert np.array_equal(kept[kept != 0], weight.astype(np.float32)[kept != 0])


def test_sparsegpt_errs_less_than_magnitude_on_its_own_calibration_text(base, tokenizer, tmp_path):
    whole = logits(models.load(base, "float32")[0]).log_softmax(-1)
    kl = {}
    for method in ("sparsegpt", "magnitude"):
        pruned = models.load(base, "float32")[0]
        prune.prune(pruned, tokenizer, SEQUENCES, method, 0.5, 0.5, "", tmp_path / "log")
        kl[method] = float((whole.exp() * (whole - logits(pruned).log_softmax(-1))).sum(-1).mean())
    assert kl["sparsegpt"] < kl["magnitude"], kl


def test_a_method_that_does_nothing_is_caught(model, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(prune, "_magnitude", lambda *_: None)
    with pytest.raises(AssertionError, match="sparsity is 0.0"):
        prune.prune(model, tokenizer, [], "magnitude", 0.5, 0.5, "", tmp_path / "log")


def test_depth_pruning_is_dropping_layers_by_hand(base, model):
    keep = [0, 2]
    with torch.inference_mode():  # by hand: layer 1 hands its input on
        whole = models.load(base, "float32")[0]
        whole.model.layers[1].register_forward_hook(lambda module, args, output: args[0])
        expected = whole(input_ids=torch.tensor(SEQUENCES)).logits
    structured.drop_layers(model, keep)
    assert torch.equal(logits(model), expected) and model.config.num_hidden_layers == 2


def test_block_influence_is_one_minus_the_cosine(model):
    found = structured.activation_statistics(model, SEQUENCES, batch=3)["influence"]
    with torch.inference_mode():
        states = model(input_ids=torch.tensor(SEQUENCES), output_hidden_states=True).hidden_states
    for layer in range(2):  # the last state is after the final norm
        a, b = (state.reshape(-1, 64).double().numpy() for state in states[layer : layer + 2])
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found[layer] == pytest.approx(1 - cosine.mean(), abs=1e-5)
    assert structured.layers_to_keep(np.array([0.3, 0.1, 0.2, 0.05]), 0.5) == [0, 2]


def test_width_pruning_removes_neurons_that_were_nothing_exactly(model):
    dead = torch.arange(128)[torch.randperm(128, generator=torch.Generator().manual_seed(3))[:64]]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[dead] = 0
            layer.mlp.up_proj.weight[dead] = 0
            layer.mlp.down_proj.weight[:, dead] = 0
    before = logits(model)
    structured.narrow_mlp(model, structured.activation_statistics(model, SEQUENCES)["neurons"], 64)
    assert model.model.layers[0].mlp.down_proj.weight.shape == (64, 64)
    assert (logits(model) - before).abs().max() < 1e-4


def test_a_dead_group_of_heads_goes_with_its_key_value_head(model):
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, :32] = 0  # query heads 0 and 1 share key/value head 0
    before = logits(model)
    structured.drop_head_groups(
        model, structured.activation_statistics(model, SEQUENCES)["heads"], 1
    )
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    assert (logits(model) - before).abs().max() < 1e-4


def test_a_structured_checkpoint_loads_plainly_and_is_smaller(base, model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    statistics = structured.activation_statistics(model, SEQUENCES)
    point = grid.parse("depth 33 + width 50 + heads 50")
    grid.build(model, tokenizer, point, SEQUENCES, statistics, 32, tmp_path / "log")
    expected = logits(model)
    measure.save(model, tokenizer, tmp_path / "out", "float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert (logits(again) - expected).abs().max() < 1e-4
    shape = models.llama_shape(tmp_path / "out")
    assert (shape["layers"], shape["intermediate"], shape["heads"], shape["kv_heads"]) == (
        2,
        64,
        2,
        1,
    )
    from lib.compression import sizes

    assert sizes.measure(tmp_path / "out", False)["bytes"] < sizes.measure(base, False)["bytes"]
    generated = again.generate(
        torch.tensor([SEQUENCES[0][:8]]), max_new_tokens=4, do_sample=False
    )  # the cache works
    assert generated.shape[1] > 8


def test_names_of_points():
    by_type = {
        "name": "wanda 60/70",
        "method": "wanda",
        "attention": 0.6,
        "mlp": 0.7,
        "pattern": "",
    }
    assert grid.parse("wanda 60/70") == by_type
    assert (
        grid.parse("magnitude 2:4")["pattern"] == "2:4"
        and grid.parse("depth 10 + width 17")["width"] == 0.17
    )
    points = grid.names({"magnitude": ["60", "2:4"], "wanda": []}, ["depth 10"])
    assert points == ["unpruned", "magnitude 60", "magnitude 2:4", "depth 10"]
    with pytest.raises(ValueError, match="write for example"):
        grid.names({"magnitude": ["600"]}, [])
    for wrong in ("sparsegpt", "wanda 165", "deep 10", "depth 10 + depth 20", "width 1.5", ""):
        with pytest.raises(ValueError, match="write for example"):
            grid.parse(wrong)


def test_widths_and_heads_that_loaders_accept():
    assert (
        structured.width_to_keep(1536, 0.17, 128) == 1280
        and structured.width_to_keep(14336, 0.3, 1024) == 10240
    )
    with pytest.raises(ValueError, match="no multiple of 100"):
        structured.width_to_keep(1536, 0.1, 100)
    assert structured.groups_to_keep(3, 9, 576, 0.33) == 2
    assert structured.groups_to_keep(8, 32, 4096, 0.25) == 8  # 24 query heads do not divide 4096


def test_the_choice_is_the_smallest_file_within_the_rule():
    rows = [
        {"name": name, "bytes": size, "perplexity": {"value": value}}
        for name, size, value in (
            ("unpruned", 100, 10.0),
            ("zeros", 100, 12.0),
            ("small", 80, 14.9),
            ("smaller", 60, 15.1),
            ("odd", 80, 14.0),
        )
    ]
    assert grid.choose(rows, 1.5)["name"] == "odd" and grid.choose(rows, 1.0)["name"] == "unpruned"
    assert [row["name"] for row in grid.front(rows)] == ["smaller", "odd", "unpruned"]


def test_recovery_brings_the_student_nearer_and_keeps_its_zeros(base, model, tokenizer, tmp_path):
    prune.prune(model, tokenizer, [], "magnitude", 0.5, 0.5, "", tmp_path / "log")
    measure.save(model, tokenizer, tmp_path / "student", "float32")
    settings = {
        "steps": 40,
        "batch": 4,
        "learning_rate": 1e-2,
        "lora_r": 8,
        "evaluations": 2,
        "dtype": "float32",
        "compute_dtype": "float32",
        "seed": 1,
    }
    train = torch.randint(3, 259, (160, 32), generator=torch.Generator().manual_seed(5)).tolist()
    found = recover.distil(
        tmp_path / "student", base, tokenizer, train, SEQUENCES, settings, tmp_path / "out"
    )
    assert (
        found["curve"][-1]["kl"] < 0.9 * found["curve"][0]["kl"] and found["tokens"] == 40 * 4 * 32
    )
    again = models.load(str(tmp_path / "out"), "float32")[0]
    assert prune.sparsity(again)["all"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="lower recover_steps"):
        recover.distil(
            tmp_path / "student", base, tokenizer, train[:3], SEQUENCES, settings, tmp_path / "out"
        )


def curated(path, count):
    rows = (
        {"id": str(n), "instruction": f"What is {n} and {n}?", "response": f"{2 * n}"}
        for n in range(count)
    )
    write_jsonl(path, rows)
    return path


def test_calibration_has_the_asked_size_follows_the_seed_and_says_when_there_is_too_little(
    tokenizer, tmp_path
):
    file = curated(tmp_path / "calibration.jsonl", 20)
    rows, used = calibration.sequences(file, tokenizer, 4, 64, 1)
    assert (
        [len(row) for row in rows] == [64] * 4
        and used["tokens"] == 256
        and used["conversations"] <= 20
    )
    again, other = (calibration.sequences(file, tokenizer, 4, 64, seed)[0] for seed in (1, 2))
    assert rows == again != other
    with pytest.raises(
        ValueError, match="500 calibration sequences of 64 tokens .* lower the number"
    ):
        calibration.sequences(file, tokenizer, 500, 64, 1)


def test_the_best_point_at_a_sparsity_and_the_sparse_points():
    rows = [
        {"name": name, "removed": removed, "perplexity": {"value": value}}
        for name, removed, value in (
            ("unpruned", 0.0, 10.0),
            ("wanda 65", 0.65, 14.0),
            ("magnitude 65", 0.651, 30.0),
            ("depth 65", 0.66, 90.0),
        )
    ]
    assert grid.best_at(rows, 0.65)["name"] == "wanda 65" and grid.best_at(rows, 0.5) is None
    assert [row["name"] for row in grid.sparse(rows)] == ["wanda 65", "magnitude 65"]
    assert grid.unpruned(rows)["perplexity"]["value"] == 10.0
