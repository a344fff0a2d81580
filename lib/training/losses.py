"""Teacher-forced loss on the assistant's tokens, perplexity and next-token share from it."""

from __future__ import annotations

import math

from lib import models, stats
from lib.estimates import Estimate
from lib.training.conversations import IGNORED, collate


def autocast(dtype: str):
    """Context in which matrix products run in `dtype` while weights keep theirs."""
    import torch

    return torch.autocast(models.device().type, getattr(torch, dtype), enabled=dtype != "float32")


def losses(
    model, examples, pad_id: int, dtype: str = "float32", batch_tokens: int = 2048
) -> dict[str, list]:
    """Loss of each conversation on its assistant's tokens, in the order of `examples`.

    examples: rows {input_ids, labels, length} of `conversations.dataset`; the model may carry an
    adapter. dtype: of matrix products, where the model does not compute in its own.
    Returns {"nats": sums, "tokens": counts, "right": tokens that the model finds most likely},
    each a list with one number a conversation.
    """
    import torch

    lengths = list(examples["length"])
    measured = {"nats": [0.0] * len(lengths), "tokens": [0] * len(lengths)}
    measured["right"] = [0] * len(lengths)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(dtype):
        for index in _batches(lengths, batch_tokens):
            batch = collate([examples[i] for i in index], pad_id)
            rows, nats, right = _by_token(model, batch)
            for place, number in enumerate(index):
                in_row = rows == place
                measured["nats"][number] = float(nats[in_row].sum())
                measured["tokens"][number] = int(in_row.sum())
                measured["right"][number] = int(right[in_row].sum())
    model.train(was_training)
    return measured


def _batches(lengths: list[int], batch_tokens: int):
    """Lists of places of like length, shortest first, within `batch_tokens` with their padding."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    while order:
        size = 1
        while size < len(order) and (size + 1) * lengths[order[size]] <= batch_tokens:
            size += 1
        yield order[:size]
        order = order[size:]


def _by_token(model, batch: dict):
    """Of each token that carries loss: its row, its nats (float64), whether it is the likeliest.

    The vocabulary table, a fifth of a small model's work, runs on these positions alone.
    """
    import torch
    from torch.nn.functional import cross_entropy

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    learned = labels != IGNORED
    hidden = causal.get_decoder()(**batch)[0][:, :-1][learned]
    logits, wanted = causal.get_output_embeddings()(hidden).float(), labels[learned]
    rows: torch.Tensor = learned.nonzero()[:, 0].cpu()
    nats = cross_entropy(logits, wanted, reduction="none").double().cpu()
    return rows, nats, (logits.argmax(-1) == wanted).cpu()


def means(measured: dict[str, list]):
    """Nats a token of each conversation, a float64 array, from `losses`."""
    import numpy as np

    return np.array(measured["nats"], float) / np.maximum(measured["tokens"], 1)


def perplexity(measured: dict[str, list], seed: int) -> Estimate:
    """exp of the mean nats a token; the interval resamples whole conversations."""
    import numpy as np

    values, conversations = _repeated(measured, "nats")
    mean = stats.mean_ci(values, seed, clusters=conversations, bounds=(0.0, float("inf")))
    ends = {name: math.exp(min(mean[name], 80.0)) for name in ("value", "low", "high")}
    n = int(np.count_nonzero(measured["tokens"]))
    return Estimate(**ends, n=n, unit="", method=f"exp of {mean['method']}")


def next_token(measured: dict[str, list], seed: int) -> Estimate:
    """Share of the assistant's tokens that the model finds most likely, over conversations."""
    values, conversations = _repeated(measured, "right")
    return stats.mean_ci(values, seed, clusters=conversations, bounds=(0.0, 1.0), unit="share")


def _repeated(measured: dict[str, list], field: str):
    """Each conversation's mean once a token, and its number: what clustered estimates take."""
    import numpy as np

    tokens = np.array(measured["tokens"])
    share = np.array(measured[field], float) / np.maximum(tokens, 1)
    return np.repeat(share, tokens), np.repeat(np.arange(len(tokens)), tokens)
