"""Batches of whole conversations without padding, and the loss of such a batch on any model.

An optimiser step takes a fixed number of conversations. They travel as one flat stream of tokens,
sorted by length, and are cut into pieces that fit in memory: the same on one GPU and on several, on
the fast path and on the plain one.
"""

from __future__ import annotations

from lib.training import sharpen
from lib.training.conversations import IGNORED

SOFT = ("target_ids", "target_probabilities")


def flat(examples: list[dict], soft: dict | None = None) -> dict:
    """Conversations end to end, longest first.

    Returns {input_ids, labels, shift_labels, attention_mask: [tokens]; lengths}. shift_labels[i] is
    what the model is to say after token i; IGNORED at the end of each conversation. labels are the
    same numbers: transformers' Trainer looks for that name and counts those that are not IGNORED.
    With soft targets (`sharpen.read`) of any of them also target_ids and target_probabilities,
    [positions that carry loss, k].
    """
    import torch

    examples = sorted(examples, key=lambda example: -len(example["input_ids"]))
    ids = torch.cat([torch.as_tensor(example["input_ids"]) for example in examples])
    labels = torch.cat([torch.as_tensor([*example["labels"][1:], IGNORED]) for example in examples])
    lengths = [len(example["input_ids"]) for example in examples]
    rows = {"labels": [torch.as_tensor(example["labels"]) for example in examples]}
    aims = sharpen.attach(rows, examples, soft) if soft else {}
    return {
        "input_ids": ids,
        "labels": labels,
        "shift_labels": labels,
        "attention_mask": torch.ones_like(ids),
        "lengths": lengths,
    } | {name: aims[name] for name in SOFT if name in aims}


def pieces(lengths: list[int], budget: int, padded: bool) -> list[tuple[int, int]]:
    """Runs [first, last) of documents, longest first, each of at most `budget` tokens.

    Padding counts when `padded`. As few runs as possible, of about equal tokens. A document longer
    than the budget is a run of its own.
    """
    assert lengths == sorted(lengths, reverse=True), "documents are not sorted, longest first"

    def size(first: int, last: int) -> int:
        return lengths[first] * (last - first) if padded else sum(lengths[first:last])

    wanted = budget
    if not padded:  # level the runs
        total = sum(lengths)
        wanted = min(budget, total / -(-total // budget) + lengths[-1] / 2)
    runs, first = [], 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or size(first, last + 1) > budget or size(first, last) >= wanted:
            runs.append((first, last))
            first = last
    return runs


def cut(batch: dict, budget: int, padded: bool) -> list[dict]:
    """The pieces of a flat batch, with their share of soft targets.

    Each is {input_ids, targets: [tokens]; lengths}.
    """
    lengths, made, start, learned = batch["lengths"], [], 0, 0
    for first, last in pieces(lengths, budget, padded):
        end = start + sum(lengths[first:last])
        made.append(
            {
                "input_ids": batch["input_ids"][start:end],
                "targets": batch["shift_labels"][start:end],
                "lengths": lengths[first:last],
            }
        )
        if SOFT[0] in batch:
            upto = learned + int((made[-1]["targets"] != IGNORED).sum())
            made[-1] |= {name: batch[name][learned:upto] for name in SOFT}
            learned = upto
        start = end
    return made


def plain_loss(
    model, input_ids, targets, lengths, items=None, target_ids=None, target_probabilities=None
):
    """Negative log-likelihood of the targets in nats, summed and divided by `items`.

    items: the number of targets where it is not given. For any model: documents become right-padded
    rows again. The projection onto the vocabulary, a fifth of a small model's work, runs on the
    positions that carry loss alone; ratio to the model's own loss: tests/bench/training.py. With
    soft targets the loss is the divergence from them, of which cross-entropy is the case of one-hot
    ones.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    def rows(values, fill):
        return pad_sequence(values.split(lengths), batch_first=True, padding_value=fill)

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    wanted = rows(targets, IGNORED)
    learned = wanted != IGNORED
    mask = rows(torch.ones_like(input_ids), 0)
    hidden = causal.get_decoder()(input_ids=rows(input_ids, 0), attention_mask=mask)[0]
    logits = causal.get_output_embeddings()(hidden[learned]).float()
    if target_ids is not None:
        nats = sharpen.divergence(logits, target_ids, target_probabilities)
    else:
        nats = cross_entropy(logits, wanted[learned], reduction="sum")
    return nats / (items if items is not None else learned.sum())


def level_sampler(lengths: list[int], conversations: int, ranks: int, rank: int, seed: int):
    """Batch sampler: a fixed number of shuffled conversations a step, shared out by tokens.

    Every GPU gets as many tokens. It is transformers' BatchRebalanceSampler, counting the tokens
    themselves, since nothing is padded here.
    """
    from transformers.trainer_pt_utils import BatchRebalanceSampler

    class LevelSampler(BatchRebalanceSampler):
        def _group_cost(self, group):
            return sum(length for _, length in group)

    return LevelSampler(lengths, conversations, ranks, 1, rank=rank, seed=seed, drop_last=False)
