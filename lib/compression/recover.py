"""Winning back what compression lost, in two ways.

After pruning (20): `distil` lets the pruned model learn the unpruned one's next-token distribution.
After quantisation (24): `hardest` finds the examples that the compressed model finds hardest, and
`write_better_answers` what an adapter is to learn from them.
"""

from __future__ import annotations

import math
from pathlib import Path

from lib import models
from lib.compression import measure, prune
from lib.files import write_jsonl
from lib.training.conversations import messages_of
from lib.training.losses import autocast
from lib.training.train import add_lora


def distil(
    student_folder: Path,
    teacher_folder: str,
    tokenizer,
    train: list[list[int]],
    held_out: list[list[int]],
    settings: dict,
    folder: Path,
) -> dict:
    """Distil `steps` batches of text into a pruned checkpoint; write it merged as a plain one.

    Args:
        train, held_out: sequences of equal length (`calibration.sequences`), of different splits.
        settings: {"steps" (optimiser steps), "batch" (sequences a step), "learning_rate" (peak,
            linear to 0), "lora_r", "evaluations" (points of the curve), "dtype" of the file,
            "compute_dtype", "seed"}.
    Weights that the pruning zeroed are zero again after the merge. Knowledge distillation: Hinton
    et al. 2015; LoRA on all seven linears in place of full training, so that the 8B and its teacher
    fit one 80 GB card. Returns {"curve": [{"step", "tokens", "kl" (held out, nats a token)}],
    "tokens"}. Raises ValueError when there is too little text for the steps.
    """
    steps, batch, rank = settings["steps"], settings["batch"], settings["lora_r"]
    if len(train) < steps * batch:
        raise ValueError(
            f"{steps} steps of {batch} sequences need {steps * batch}, {len(train)} are there;"
            " lower recover_steps"
        )
    teacher, base = (_opened(folder, settings) for folder in (teacher_folder, str(student_folder)))
    zeros = {name: module.weight == 0 for name, module in prune.linears(base)}
    student = add_lora(base, rank, 2 * rank, 0.0, settings["seed"])
    curve = _fit(teacher, student, train, held_out, settings)
    del teacher
    _save_merged(student, zeros, tokenizer, folder, settings["dtype"])
    return {"curve": curve, "tokens": steps * batch * len(train[0])}


def _opened(folder: str, settings: dict):
    """A checkpoint with weights of the file's type, computing in `compute_dtype`."""
    compute = settings["compute_dtype"]
    weights = settings["dtype"] if compute == "float32" else ""
    return models.load(folder, compute, weights=weights)[0]


def _fit(teacher, student, train: list, held_out: list, settings: dict) -> list[dict]:
    """Train the student's adapter on `divergence`; returns the held-out curve."""
    import torch

    steps, batch = settings["steps"], settings["batch"]
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(1, steps))
    length, interval = len(train[0]), max(1, steps // max(1, settings["evaluations"]))
    kl = held_out_kl(teacher, student, held_out, settings["compute_dtype"])
    curve = [{"step": 0, "tokens": 0, "kl": kl}]
    for step in range(1, steps + 1):
        ids = torch.tensor(train[(step - 1) * batch : step * batch], device=teacher.device)
        student.train()
        with autocast(settings["compute_dtype"]):
            loss = divergence(teacher, student, ids).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % interval == 0 or step == steps:
            kl = held_out_kl(teacher, student, held_out, settings["compute_dtype"])
            curve.append({"step": step, "tokens": step * batch * length, "kl": kl})
    return curve


def _save_merged(student, zeros: dict, tokenizer, folder: Path, dtype: str) -> None:
    """Merge the adapter in float32, set the pruned weights to zero again, write a checkpoint."""
    import torch

    merged = student.float().merge_and_unload(safe_merge=True)
    with torch.no_grad():
        for name, module in prune.linears(merged):
            module.weight.masked_fill_(zeros[name], 0)
    measure.save(merged, tokenizer, folder, dtype)


def divergence(teacher, student, ids):
    """KL from the teacher's next-token distribution to the student's, nats [sequences, length]."""
    import torch
    from torch.nn.functional import kl_div

    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits.float().log_softmax(-1)
    predicted = student(input_ids=ids).logits.float().log_softmax(-1)
    return kl_div(predicted, wanted, log_target=True, reduction="none").sum(-1)


def held_out_kl(
    teacher, student, sequences: list[list[int]], compute_dtype: str, batch: int = 4
) -> float:
    """Mean `divergence` over the tokens of held-out sequences, in nats."""
    import torch

    student.eval()
    total = 0.0
    with torch.inference_mode(), autocast(compute_dtype):
        for start in range(0, len(sequences), batch):
            ids = torch.tensor(sequences[start : start + batch], device=teacher.device)
            total += float(divergence(teacher, student, ids).sum())
    return max(0.0, total / sum(map(len, sequences)))


def figure(curve: list[dict], label: str):
    """Held-out divergence from the unpruned model against the tokens of recovery."""
    from lib import plots

    fig, axes = plots.figure(height=3.2)
    tokens, kl = [row["tokens"] for row in curve], [row["kl"] for row in curve]
    axes.plot(tokens, kl, "o-", color=plots.GREEN)
    axes.set(
        xlabel="tokens of recovery",
        ylabel="KL from the unpruned model (nats a token)",
        ylim=(0, None),
        title=f"Recovery of {label}",
    )
    return fig


def hardest(examples, losses: dict[str, list], count: int) -> list[tuple[str, float]]:
    """(row id, perplexity) of the `count` conversations with the highest mean loss, hardest first.

    losses: {"nats", "tokens"} of `runtime.answer_losses`, in the order of `examples`. Raises
    ValueError when there are fewer than asked for.
    """
    if count > len(losses["nats"]):
        raise ValueError(
            f"{count} hard examples are asked for, {len(losses['nats'])} were scored; score more"
            " rows"
        )
    means = [nats / tokens for nats, tokens in zip(losses["nats"], losses["tokens"], strict=True)]
    order = sorted(range(len(means)), key=lambda index: -means[index])[:count]
    ids = list(examples["id"])
    return [(ids[index], math.exp(min(means[index], 80.0))) for index in order]


def write_better_answers(rows: list[dict], out: Path, client=None, max_tokens: int = 512) -> dict:
    """Write the rows with better answers as a curated JSONL file for `conversations.dataset`.

    client: `endpoints.client.Client` of a teacher; None keeps the gold answers. A row that the
    teacher does not answer whole keeps its gold answer. Returns {"rows", "answered" (by the
    teacher), "source"}.
    """
    kept, answered = [dict(row) for row in rows], 0
    if client is not None:
        requests = [
            {"messages": messages_of(row)[:-1], "max_tokens": max_tokens, "temperature": 0.0}
            for row in rows
        ]
        replies = client.chat(requests, label=f"teacher, {client.model}")
        for row, reply in zip(kept, replies, strict=True):
            if "error" not in reply and reply["finish"] == "stop" and reply["text"].strip():
                row["response"] = reply["text"].strip()
                answered += 1
    write_jsonl(out, kept)
    source = client.model if client is not None else "gold"
    return {"rows": len(kept), "answered": answered, "source": source}
