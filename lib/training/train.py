"""LoRA fine-tuning on the full-precision base, with exact resume."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from lib import models
from lib.files import atomic_write_json, replacing_folder
from lib.training import checkpoints, sharpen, streams

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# what `fit` takes from a notebook's parameters
SETTINGS = (
    "epochs",
    "max_steps",
    "learning_rate",
    "warmup_share",
    "effective_batch",
    "micro_tokens",
    "eval_steps",
    "early_stopping_patience",
    "seed",
    "dtype",
)


def add_lora(model, r: int, alpha: int, dropout: float, seed: int):
    """PEFT model with LoRA (Hu et al. 2021) on all seven linears, float32; the base is frozen."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def fast_path(model, dtype: str):
    """(lib.training.fast_lora over `model`, "") where it pays, else (None, the reason).

    It pays for a Llama on a GPU, in bf16 throughout.
    """
    from lib.training import fast_lora

    base = next(p for p in model.parameters() if not p.requires_grad)
    if not base.is_cuda:
        return None, "no GPU"
    if dtype != "bfloat16" or str(base.dtype) != "torch.bfloat16":
        return None, f"the base is held in {base.dtype} and products run in {dtype}"
    reason = fast_lora.obstacle(model)
    return (None, reason) if reason else (fast_lora.FastLoRA(model), "")


def fit(
    model,
    train,
    valid,
    folder: Path,
    settings: dict,
    probe=None,
    fingerprint: str = "",
    targets: Path | None = None,
    callbacks=(),
) -> dict:
    """Train the adapter; a killed call, made again, goes on from the last whole checkpoint.

    Its losses are those of a call never killed. On a GPU a Llama takes lib.training.fast_lora, all
    else its own forward. Under torchrun every process trains on its share of each step.

    Args:
        settings: a value for each name in SETTINGS; max_steps 0 goes by epochs,
            early_stopping_patience 0 never stops early, dtype is that of matrix products while
            weights keep theirs. micro_tokens is how many tokens are held in memory at once; 0
            chooses by free memory, and recomputes activations only where even few do not fit.
        probe: function() -> score in [0, 1], called at every evaluation; None for no probe.
        fingerprint: of data and settings; checkpoints of another one are discarded, not continued.
        targets: soft targets of some of the examples by their id, written by `sharpen.write`.
        callbacks: further ones of transformers' Trainer.
    Returns {history (Trainer's log), probe (list of {step, score}), steps, finished, tokens
    (non-padding ones), seconds (without evaluation), resumed_from, path (a sentence)}.
    """
    from lib.training import trainer

    arguments = trainer.arguments(folder, settings)
    resume = _checkpoint(arguments, folder, fingerprint)
    soft = sharpen.read(targets)
    fast, reason = (None, "soft targets") if soft else fast_path(model, settings["dtype"])
    budget = _tokens_at_once(model, fast, max(train["length"]), settings, arguments)
    watcher = trainer.Watcher(folder, probe if arguments.world_size == 1 else None)
    made = trainer.PieceTrainer(
        conversations=settings["effective_batch"],
        budget=budget,
        padded=fast is None,
        model=model,
        args=arguments,
        train_dataset=train.select_columns(trainer.COLUMNS),
        eval_dataset=valid.select_columns(trainer.COLUMNS),
        data_collator=lambda examples: streams.flat(examples, soft),
        callbacks=[watcher, *callbacks],
    )
    _run(made, trainer.forward_of_pieces(model, fast, settings["dtype"]), settings, resume)
    steps, patience = made.state.global_step, settings["early_stopping_patience"]
    return {
        "history": made.state.log_history,
        "probe": watcher.scores,
        "steps": steps,
        "finished": steps >= made.state.max_steps or patience > 0,
        "tokens": int(made.state.num_input_tokens_seen),
        "seconds": watcher.seconds,
        "resumed_from": int(resume.name.split("-")[1]) if resume else 0,
        "path": _path_taken(fast, reason, budget, arguments.world_size),
    }


def _checkpoint(arguments, folder: Path, fingerprint: str) -> Path | None:
    """The checkpoint that every process goes on from; the first one clears what does not fit."""
    with arguments.main_process_first(desc="checkpoints"):
        first = None
        if arguments.process_index == 0:
            first = checkpoints.resume_from(folder, fingerprint)
        return first or checkpoints.complete(folder, clean=False)


def _tokens_at_once(model, fast, longest: int, settings: dict, arguments) -> int:
    """Tokens held in memory at once; also decides which activations are made twice instead."""
    import torch

    on_gpu = torch.cuda.is_available()
    if fast:
        planned, fast.recomputed = fast.plan(longest)
    else:  # on a CPU shorter runs cost nothing and are padded less
        planned = 4096 if on_gpu else 1024
        large = sum(p.numel() for p in model.parameters()) > 1e9
        arguments.gradient_checkpointing = on_gpu and large
    return settings["micro_tokens"] or planned


def _run(made, forward, settings: dict, resume: Path | None) -> None:
    """Let the Trainer train while its model has the forward of pieces."""
    import transformers
    from peft.helpers import disable_input_dtype_casting

    made.remove_callback(transformers.PrinterCallback)
    if settings["early_stopping_patience"]:
        patience = settings["early_stopping_patience"]
        made.add_callback(transformers.EarlyStoppingCallback(patience))
    model, casting = made.model, contextlib.nullcontext()
    if settings["dtype"] == "bfloat16":
        # peft would cast every adapter input to float32; under autocast that only costs time
        casting = disable_input_dtype_casting(model)
    try:
        model.forward = forward
        with casting:
            made.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        model.__dict__.pop("forward")


def _path_taken(fast, reason: str, budget: int, processes: int) -> str:
    path = f"the model's own forward ({reason}), {budget:,} tokens at once"
    if fast:
        layers = f"{fast.recomputed} of {len(fast.layers)} layers recomputed"
        path = f"the fast path, {budget:,} tokens at once, {layers}"
    return f"{path}, {processes} process{'es' if processes > 1 else ''}"


def save_adapter(model, tokenizer, folder: Path, record: dict) -> None:
    """Write adapter, tokenizer and training.json (the record) atomically.

    record: of `base_record`, with the settings.
    """
    # a name a reader can load, not a cache folder
    model.peft_config["default"].base_model_name_or_path = record["base"]
    with replacing_folder(folder) as scratch:
        # without a look-up of the base's vocabulary on the Hub
        model.save_pretrained(scratch, save_embedding_layers=False)
        tokenizer.save_pretrained(scratch)
        atomic_write_json(scratch / "training.json", record)


def adapter_key(model) -> str:
    """16 hex digits that change with the adapter's weights as they are now."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def base_record(name: str, dtype: str, revision: str = "", quantised: bool = False) -> dict:
    """What an adapter must say about its base, for `merge.check_base`.

    quantised: it was trained on the base's NF4 form (QLoRA).
    """
    return {
        "base": name,
        "base_key": models.key(name, revision=revision),
        "base_revision": models.resolve_revision(name, revision),
        "base_dtype": dtype,
        "base_quantised": quantised,
    }
