"""Training towards a temperature: against a hand computation, and what the model then does."""

import math

import pytest

from lib import models
from lib.files import write_jsonl
from lib.training import conversations, sharpen, streams
from tests import tiny


def test_divergence_against_a_hand_computation():
    """Two positions, four words, T 0.5, worked out with the math module alone."""
    import torch

    teacher = [[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]]
    student = [[1.0, 1.0, 1.0, 1.0], [0.5, -0.5, 2.0, 0.0]]
    by_hand = 0.0
    for z, s in zip(teacher, student, strict=True):
        p = [math.exp(value / 0.5) for value in z]
        p = [value / sum(p) for value in p]
        log_q = [value - math.log(sum(math.exp(other) for other in s)) for value in s]
        by_hand += sum(a * (math.log(a) - b) for a, b in zip(p, log_q, strict=True))
    ids, probabilities, mass = sharpen.sharpened(torch.tensor(teacher), 0.5, 4)
    assert torch.allclose(mass, torch.ones(2)) and torch.allclose(
        probabilities.sum(1), torch.ones(2)
    )
    found = sharpen.divergence(torch.tensor(student), ids, probabilities)
    assert float(found) == pytest.approx(by_hand, abs=1e-5)


def test_the_target_itself_has_no_divergence_and_temperature_zero_is_cross_entropy():
    import torch

    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(1)) * 3
    ids, probabilities, _ = sharpen.sharpened(logits, 0.3, 30)
    assert float(sharpen.divergence(logits / 0.3, ids, probabilities)) == pytest.approx(0, abs=1e-5)
    other = torch.randn(5, 30, generator=torch.Generator().manual_seed(2))
    cold = sharpen.divergence(other, *sharpen.sharpened(logits, 1e-6, 30)[:2])
    greedy = torch.nn.functional.cross_entropy(other, logits.argmax(-1), reduction="sum")
    assert float(cold) == pytest.approx(float(greedy), rel=1e-4)
    with pytest.raises(ValueError, match="plain cross-entropy"):
        sharpen.sharpened(logits, 0.0, 3)


def test_what_the_top_k_leaves_out_is_what_is_reported(tmp_path):
    """KL of the full sharpened distribution from its k most likely words is -log of the kept
    mass."""
    import torch

    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(3))
    full = torch.softmax(logits / 0.7, -1)
    ids, probabilities, mass = sharpen.sharpened(logits, 0.7, 8)
    kept = torch.zeros_like(full).scatter(-1, ids.long(), probabilities)
    inside = (kept * (torch.xlogy(torch.ones(()), kept.clamp(min=1e-30)) - full.log())).sum(-1)
    assert torch.allclose(inside, -mass.log(), atol=1e-5) and float(mass.max()) < 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharpen")
    name = tiny.checkpoint(folder / "model")
    rows = [
        {
            "id": f"r{i}",
            "instruction": f"Say {i}",
            "response": f"word {i} " * 3,
            "cut": i % 2 == 1,
            "target_temperature": 0.3 if i < 3 else 0.0,
        }
        for i in range(6)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder, name, rows


def test_targets_survive_the_disk_and_belong_to_positions_with_loss(small):
    import torch

    folder, name, rows = small
    model, tokenizer = models.load(name, "float32")
    data, _ = conversations.dataset(folder / "rows.jsonl", tokenizer, 200, 0, 0, folder / "cache")
    report = sharpen.write(
        model, data, folder / "t.safetensors", {"r0": 0.3, "r1": 0.3}, 16, (1, 8)
    )
    assert [row["k"] for row in report] == [1, 8, 16, 259] and report[2]["bytes"] == 16 * 8
    masses = [row["least_kept_mass"] for row in report]
    assert (
        masses == sorted(masses)
        and masses[2] > 0.5
        and report[0]["missed"] > report[2]["missed"] >= 0
    )
    targets = sharpen.read(folder / "t.safetensors")
    examples = [row for row in data if row["id"] in ("r0", "r1", "r4")]
    batch = sharpen.attach(
        conversations.collate(examples, tokenizer.pad_token_id), examples, targets
    )
    pieces = streams.cut(streams.flat(examples, targets), 60, padded=True)
    assert len(pieces) > 1 and sum(len(piece["target_ids"]) for piece in pieces) == len(
        batch["target_ids"]
    )
    learned = batch["labels"][:, 1:] != conversations.IGNORED
    assert len(batch["target_ids"]) == int(learned.sum())
    own = sum(streams.plain_loss(model, **piece, items=1) for piece in pieces)
    by_hand = 0.0
    for example in examples:
        logits = model(torch.tensor([example["input_ids"]])).logits[0, :-1]
        keep = torch.tensor(example["labels"][1:]) != conversations.IGNORED
        if example["id"] == "r4":
            gold = torch.tensor(example["labels"][1:])[keep]
            by_hand += float(torch.nn.functional.cross_entropy(logits[keep], gold, reduction="sum"))
        else:
            by_hand += float(
                sharpen.divergence(logits[keep], *sharpen.sharpened(logits[keep], 0.3, 16)[:2])
            )
    assert float(own) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(ValueError, match="write them again"):
        sharpen.attach(batch, examples, {"r0": tuple(part[:-1] for part in targets["r0"])})
    plain = conversations.collate(examples, tokenizer.pad_token_id)
    assert sharpen.attach(plain, examples, {}) is plain


def test_a_cut_text_teaches_no_end(small):
    folder, name, rows = small
    _, tokenizer = models.load(name, "float32")
    data, _ = conversations.dataset(folder / "rows.jsonl", tokenizer, 200, 0, 0, folder / "cache")
    for example in data:
        learned = [label for label in example["labels"] if label != conversations.IGNORED]
        cut = next(row["cut"] for row in rows if row["id"] == example["id"])
        assert (tokenizer.eos_token_id in learned) == (not cut)


def test_training_towards_a_temperature_sharpens_the_model(small):
    """After training, the entropy at the trained positions has moved towards that of softmax(z /
    0.3)."""
    import torch

    from lib.training import tune

    folder, name, rows = small
    values = {
        "epochs": 30,
        "max_steps": 0,
        "learning_rate": 0.02,
        "warmup_share": 0.0,
        "effective_batch": 3,
        "micro_tokens": 0,
        "early_stopping_patience": 0,
        "eval_steps": 60,
        "seed": 3,
        "dtype": "float32",
        "base_dtype": "float32",
        "max_length": 200,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "four_bit": False,
    }
    soft = [row | {"target_temperature": 0.3} for row in rows[:3]]
    write_jsonl(folder / "soft.jsonl", soft)
    model, tokenizer = models.load(name, "float32")
    data, _ = conversations.dataset(folder / "soft.jsonl", tokenizer, 200, 0, 0, folder / "cache")
    report = sharpen.write(
        model, data, folder / "soft.safetensors", {row["id"]: 0.3 for row in soft}, 32
    )
    result = tune.tune(
        name,
        folder / "soft.jsonl",
        folder / "rows.jsonl",
        0,
        folder / "out",
        values,
        targets=folder / "soft.safetensors",
    )
    losses = [row["loss"] for row in result["history"] if "loss" in row]
    assert report[0]["positions"] > 0 and losses[-1] < 0.5 * losses[0]
    sharp, _ = models.load(str(tune.merged(name, folder / "out", values, "float32")), "float32")

    def entropy(net, temperature):
        found = []
        for example in data:
            with torch.inference_mode():
                logits = net(torch.tensor([example["input_ids"]])).logits[0, :-1]
            keep = torch.tensor(example["labels"][1:]) != conversations.IGNORED
            p = torch.softmax(logits[keep] / temperature, -1)
            found.append(-torch.xlogy(p, p).sum(-1))
        return float(torch.cat(found).mean())

    before, target, after = entropy(model, 1.0), entropy(model, 0.3), entropy(sharp, 1.0)
    assert target < before and abs(after - target) < 0.5 * abs(before - target)
