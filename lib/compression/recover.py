"""Short recovery after pruning: the pruned model learns the unpruned model's next-token
distribution, through LoRA."""

from __future__ import annotations

from pathlib import Path

from lib.compression import measure, prune


def distil(
    student_folder: Path,
    teacher_folder: str,
    tokenizer,
    train: list[list[int]],
    held_out: list[list[int]],
    settings: dict,
    folder: Path,
) -> dict:
    """Distil `steps` batches of text into a pruned checkpoint and write the merged result as a
    plain checkpoint.

    Args: train, held_out: sequences of equal length (`calibration.sequences`), from different
    splits. settings:
        {"steps" (optimiser steps), "batch" (sequences a step), "learning_rate" (peak, linear to 0),
        "lora_r", "evaluations" (points of the curve), "dtype" of the file, "compute_dtype",
        "seed"}.
    Weights that the pruning zeroed are zero again after the merge. Knowledge distillation: Hinton
    et al. 2015; LoRA on all seven linears in place of full training, so that the 8B and its teacher
    fit one 80 GB card. Returns {"curve": [{"step", "tokens", "kl" (held out, nats a token)}],
    "tokens"}. Raises ValueError when there is too little text for the steps.
    """
    import torch

    from lib.training.train import add_lora, autocast

    steps, batch = settings["steps"], settings["batch"]
    if len(train) < steps * batch:
        raise ValueError(
            f"{steps} steps of {batch} sequences need {steps * batch}, {len(train)} are there;"
            " lower recover_steps"
        )
    teacher = measure.open_model(teacher_folder, settings["dtype"], settings["compute_dtype"])
    base = measure.open_model(str(student_folder), settings["dtype"], settings["compute_dtype"])
    zeros = {name: module.weight == 0 for name, module in prune.linears(base)}
    rank = settings["lora_r"]
    student = add_lora(base, rank, 2 * rank, 0.0, settings["seed"])
    weights = [each for each in student.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(1, steps))
    length, every = len(train[0]), max(1, steps // max(1, settings["evaluations"]))
    curve = [
        {
            "step": 0,
            "tokens": 0,
            "kl": held_out_kl(teacher, student, held_out, settings["compute_dtype"]),
        }
    ]
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
        if step % every == 0 or step == steps:
            kl = held_out_kl(teacher, student, held_out, settings["compute_dtype"])
            curve.append({"step": step, "tokens": step * batch * length, "kl": kl})
    del teacher
    merged = student.float().merge_and_unload(safe_merge=True)
    with torch.no_grad():
        for name, module in prune.linears(merged):
            module.weight.masked_fill_(zeros[name], 0)
    measure.save(merged, tokenizer, folder, settings["dtype"])
    return {"curve": curve, "tokens": steps * batch * length}


def divergence(teacher, student, ids):
    """KL of the teacher's next-token distribution from the student's, in nats, [sequences,
    length]."""
    import torch
    from torch.nn.functional import kl_div

    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits.float().log_softmax(-1)
    found = student(input_ids=ids).logits.float().log_softmax(-1)
    return kl_div(found, wanted, log_target=True, reduction="none").sum(-1)


def held_out_kl(
    teacher, student, sequences: list[list[int]], compute_dtype: str, batch: int = 4
) -> float:
    """Mean `divergence` over the tokens of held-out sequences, in nats."""
    import torch

    from lib.training.train import autocast

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
    axes.plot(
        [row["tokens"] for row in curve], [row["kl"] for row in curve], "o-", color=plots.GREEN
    )
    axes.set(
        xlabel="tokens of recovery",
        ylabel="KL from the unpruned model (nats a token)",
        ylim=(0, None),
        title=f"Recovery of {label}",
    )
    return fig
