"""The fast LoRA path against peft and plain autograd, on a CPU: the same lines run there,
uncompiled."""

import numpy as np
import pytest
import torch

from lib import models
from lib.files import write_jsonl
from lib.training import conversations, fast_kernels, fast_lora, streams, train
from tests import tiny
from tests.test_train import SETTINGS, rows

LENGTHS = [19, 19, 7, 3, 1]


def adapted(folder, dropout=0.0, layers=3):
    """A tiny Llama with adapters whose B is not zero."""
    model, tokenizer = models.load(tiny.checkpoint(folder, layers=layers), "float32")
    model = train.add_lora(model, 4, 12, dropout, 1).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model, tokenizer


def documents(lengths=tuple(LENGTHS)):
    """A flat stream with loss on the last two thirds of each document."""
    ids = torch.randint(3, 259, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    targets, end = ids.roll(-1), 0
    for length in lengths:
        end += length
        targets[end - 1] = conversations.IGNORED
        targets[end - length : end - length + length // 3] = conversations.IGNORED
    return ids, targets, list(lengths)


def gradients(model, loss):
    """Gradients of the adapters, which are cleared."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss.backward()
    found = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def one_by_one(model, ids, targets, lengths):
    """The unpacked reference: peft's own forward, a document at a time."""
    total = 0.0
    for each, wanted in zip(ids.split(lengths), targets.split(lengths), strict=True):
        log_p = model(input_ids=each[None]).logits[0].log_softmax(-1)
        learned = wanted != conversations.IGNORED
        total = total - log_p[learned].gather(1, wanted[learned][:, None]).sum()
    return total / (targets != conversations.IGNORED).sum()


def close(ours, theirs, tolerance=1e-4):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-9


@pytest.mark.parametrize("lengths", [tuple(LENGTHS), (8, 8, 8)])
@pytest.mark.parametrize("recomputed", [0, 2])
def test_loss_and_gradients_equal_pefts_on_unpacked_documents(tmp_path, lengths, recomputed):
    model, _ = adapted(tmp_path / "m")
    ids, targets, lengths = documents(lengths)
    loss = one_by_one(model, ids, targets, lengths)
    reference = gradients(model, loss)
    fast = fast_lora.FastLoRA(model)
    fast.recomputed = recomputed
    ours = fast.loss(ids, targets, lengths)
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    close(gradients(model, ours), reference)
    after = one_by_one(
        model, ids, targets, lengths
    )  # base weights are views now; peft's forward is what it was
    assert float(after.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_dropout_is_the_mask_of_its_hash_in_forward_and_backward(tmp_path, monkeypatch):
    """peft's own forward with each dropout replaced by the same mask gives the same loss and
    gradients."""
    model, _ = adapted(tmp_path / "m", dropout=0.3, layers=2)
    ids, targets, lengths = documents((17,))
    torch.manual_seed(5)
    drawn = torch.randint(-(2**31), 2**31, (2, 4), dtype=torch.int32)

    class Mask(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.seed = seed

        def forward(self, x):
            return fast_kernels.masked(x[0], 0.3, self.seed)[None]

    fast = fast_lora.FastLoRA(model)
    torch.manual_seed(5)
    ours = fast.loss(ids, targets, lengths)
    found = gradients(model, ours)
    for layer, seeds in zip(model.get_base_model().model.layers, drawn, strict=True):
        for group, seed in zip(fast_lora._groups(layer), seeds, strict=True):
            for linear in group:
                linear.lora_dropout["default"] = Mask(seed)
    loss = one_by_one(model, ids, targets, lengths)
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    close(found, gradients(model, loss))
    model.eval()
    with torch.no_grad():
        assert float(fast.loss(ids, targets, lengths)) == float(fast.loss(ids, targets, lengths))


def test_the_mask_drops_its_share_independently():
    x = torch.ones(400, 300)
    one, two = (
        fast_kernels.masked(x, 0.05, torch.tensor(seed, dtype=torch.int32)) == 0 for seed in (7, 8)
    )
    assert (
        abs(one.float().mean() - 0.05) < 0.003 and abs((one & two).float().mean() - 0.0025) < 0.0006
    )
    assert one.float().mean(0).std() < 1.3 * (0.05 * 0.95 / 400) ** 0.5
    kept = fast_kernels.masked(x, 0.05, torch.tensor(7, dtype=torch.int32))[~one]
    assert torch.allclose(kept, torch.full_like(kept, 1 / 0.95))


def test_changed_adapters_are_taken_over(tmp_path):
    model, _ = adapted(tmp_path / "m")
    fast, stream = fast_lora.FastLoRA(model), documents()
    before = float(fast.loss(*stream).detach())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=0.1, fused=True
    )  # leaves the version counters of its parameters alone
    fast.loss(*stream).backward()
    optimiser.step()
    after = float(fast.loss(*stream).detach())
    assert after != before and after == pytest.approx(
        float(one_by_one(model, *stream).detach()), rel=1e-5
    )


def test_what_it_cannot_do_is_named(tmp_path):
    model, _ = adapted(tmp_path / "m")
    assert fast_lora.obstacle(model) == ""
    next(p for n, p in model.named_parameters() if n.endswith("norm.weight")).requires_grad_(True)
    assert "something else" in fast_lora.obstacle(model)
    assert train.fast_path(model, "float32") == (None, "no GPU")


def test_memory_plan_grows_with_memory_and_recomputes_only_when_it_must(tmp_path):
    model, _ = adapted(tmp_path / "m")
    fast = fast_lora.FastLoRA(model)
    gib = 2**30
    plans = [fast.plan(2048, free) for free in (1 * gib, 2.05 * gib, 64 * gib)]
    assert plans[0] == (fast_lora.LEAST, 3) and plans[-1] == (fast_lora.MOST, 0)
    assert [tokens for tokens, _ in plans] == sorted(tokens for tokens, _ in plans)
    assert fast.plan(9000, 1 * gib)[0] == 9000, "the longest document must fit"


def test_fit_takes_the_fast_path_and_learns_the_same(tmp_path, monkeypatch):
    """`fit` with the fast path forced on a CPU: the losses of the plain path, step by step."""
    name = tiny.checkpoint(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", rows(16))
    curves = []
    for fast in (False, True):
        model, tokenizer = models.load(name, "float32")
        data, _ = conversations.dataset(
            tmp_path / "train.jsonl", tokenizer, 200, 0, 0, tmp_path / "cache"
        )
        wrapped = train.add_lora(model, 4, 8, 0.0, 1)
        if fast:
            made = fast_lora.FastLoRA(wrapped)
            monkeypatch.setattr(made, "plan", lambda longest: (150, 1))
            monkeypatch.setattr(train, "fast_path", lambda model, dtype, made=made: (made, ""))
        folder = tmp_path / f"ck{fast}"
        result = train.fit(wrapped, data, data.select(range(4)), folder, SETTINGS, None, "x")
        assert ("fast path" in result["path"]) == fast
        curves.append([row.get("loss", row.get("eval_loss")) for row in result["history"]])
        assert type(wrapped.forward).__name__ == "method", "the model's own forward is back"
    losses = [[each for each in curve if each is not None] for curve in curves]
    assert len(losses[0]) >= 5 and np.allclose(*losses, rtol=1e-4)


def test_flat_batches_put_the_next_token_under_each_token():
    example = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    flat = streams.flat([example, {"input_ids": [4, 5, 6, 7], "labels": [-100, -100, 6, 7]}])
    assert flat["input_ids"].tolist() == [4, 5, 6, 7, 1, 2, 3] and flat["lengths"] == [4, 3]
    assert flat["shift_labels"].tolist() == [-100, 6, 7, -100, 2, 3, -100]
