"""LoRA fine-tuning on the full-precision base: loss on assistant tokens, length-grouped batches,
exact resume."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

from lib import models
from lib.files import atomic_write_json
from lib.training import checkpoints, sharpen, streams
from lib.training.conversations import IGNORED
from lib.training.losses import autocast

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
    """PEFT model with LoRA (Hu et al. 2021) on all seven linears; adapter weights in float32, base
    frozen as it is."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def fast_path(model, dtype: str):
    """lib.training.fast_lora over `model` where it pays: a Llama on a GPU, in bf16 throughout. Else
    None, and the reason."""
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
    tokenizer,
    train,
    valid,
    folder: Path,
    settings: dict,
    probe=None,
    fingerprint: str = "",
    targets: Path | None = None,
    callbacks=(),
) -> dict:
    """Train the adapter; a killed call, made again, goes on from the last complete checkpoint with
    the same losses.

    On a GPU a Llama takes lib.training.fast_lora; everything else takes its own forward. Run under
    torchrun, every process trains on its share of each step's conversations.

    Args:
        settings: a value for each name in SETTINGS; max_steps 0 goes by epochs,
        early_stopping_patience 0 never stops
            early, dtype is that of matrix products while weights keep theirs. micro_tokens is how
            many tokens are held in memory at once; 0 chooses by free memory, and recomputes
            activations only where even few do not fit.
        probe: function() -> score in [0, 1], called at every evaluation; None for no probe.
        fingerprint: of data and settings; checkpoints of another fingerprint are discarded, not
        continued.
        targets: soft targets of some of the examples by their id, written by `sharpen.write`.
        callbacks: further ones of transformers' Trainer.
    Returns {history (Trainer's log), probe (list of {step, score}), steps, finished, tokens,
    seconds, resumed_from,
        path (a sentence)}; tokens are non-padding ones, seconds exclude evaluation. Gradients are
        clipped at norm 1, nothing decays.
    """
    import torch
    import transformers
    from peft.helpers import disable_input_dtype_casting

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings["epochs"],
        max_steps=settings["max_steps"] or -1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=settings["warmup_share"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=settings["eval_steps"],
        save_strategy="steps",
        save_steps=settings["eval_steps"],
        save_total_limit=2,
        load_best_model_at_end=settings["early_stopping_patience"] > 0,
        logging_steps=1,
        prediction_loss_only=True,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=True,
        seed=settings["seed"],
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # one process drives one GPU; several take lib.training.train_worker
    ranks, rank, effective = (
        arguments.world_size,
        arguments.process_index,
        settings["effective_batch"],
    )
    if effective % ranks:
        raise ValueError(f"effective_batch {effective} is not a multiple of {ranks} GPUs")
    arguments.per_device_train_batch_size = effective // ranks
    arguments.per_device_eval_batch_size = max(1, min(effective // ranks, 16))
    with arguments.main_process_first(desc="checkpoints"):
        first = checkpoints.resume_from(folder, fingerprint) if rank == 0 else None
        resume = first or checkpoints.complete(folder, clean=False)
    soft = sharpen.read(targets)
    fast, reason = (None, "soft targets") if soft else fast_path(model, settings["dtype"])
    on_gpu = torch.cuda.is_available()
    if fast:
        planned, fast.recomputed = fast.plan(max(train["length"]))
    else:  # on a CPU shorter runs cost nothing and are padded less
        planned = 4096 if on_gpu else 1024
        arguments.gradient_checkpointing = (
            on_gpu and sum(p.numel() for p in model.parameters()) > 1e9
        )
    budget = settings["micro_tokens"] or planned
    original = model.forward

    def forward(*arguments, piece=None, items=None, first=True, **named):
        """A piece of a flat batch gives its loss; anything else is answered as before."""
        if piece is None:
            return original(*arguments, **named)
        if fast:
            return fast.loss(**piece, items=items, changed=first)
        with autocast(settings["dtype"]):
            return streams.plain_loss(model, **piece, items=items)

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, dataset=None):
            return streams.level_sampler(
                list(train["length"]), effective, ranks, rank, settings["seed"]
            )

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs, total = self._prepare_inputs(inputs), 0.0
            cut = streams.cut(inputs, budget, padded=fast is None)
            for piece in cut:
                # gradients of several GPUs are averaged once, with the last piece
                alone = (
                    model.no_sync()
                    if ranks > 1 and piece is not cut[-1]
                    else contextlib.nullcontext()
                )
                with alone:
                    loss = (
                        model(piece=piece, items=num_items_in_batch, first=piece is cut[0]) * ranks
                    )
                    self.accelerator.backward(loss)
                total += loss.detach()
            return total

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            items = (inputs["shift_labels"] != IGNORED).sum()
            loss = sum(
                model(piece=piece, items=items)
                for piece in streams.cut(inputs, budget, padded=fast is None)
            )
            return (loss, {}) if return_outputs else loss

    columns = ["id", "input_ids", "labels", "length"]
    watcher = checkpoints.watcher(folder, probe if ranks == 1 else None)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train.select_columns(columns),
        eval_dataset=valid.select_columns(columns),
        data_collator=lambda examples: streams.flat(examples, soft),
        callbacks=[watcher, *callbacks],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if settings["early_stopping_patience"]:
        trainer.add_callback(
            transformers.EarlyStoppingCallback(settings["early_stopping_patience"])
        )
    # peft would cast every adapter input to float32; under autocast that only costs time
    casting = (
        disable_input_dtype_casting(model)
        if settings["dtype"] == "bfloat16"
        else contextlib.nullcontext()
    )
    try:
        model.forward = forward
        with casting:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        model.__dict__.pop("forward")
    if fast:
        path = (
            f"the fast path, {budget:,} tokens at once, {fast.recomputed} of {len(fast.layers)}"
            " layers recomputed"
        )
    else:
        path = f"the model's own forward ({reason}), {budget:,} tokens at once"
    return {
        "history": trainer.state.log_history,
        "probe": watcher.scores,
        "steps": trainer.state.global_step,
        "finished": (
            trainer.state.global_step >= trainer.state.max_steps
            or settings["early_stopping_patience"] > 0
        ),
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": watcher.seconds,
        "resumed_from": int(resume.name.split("-")[1]) if resume else 0,
        "path": f"{path}, {ranks} process{'es' if ranks > 1 else ''}",
    }


def save_adapter(model, tokenizer, folder: Path, record: dict) -> None:
    """Write adapter, tokenizer and training.json (base name, base key, revision, dtype, settings)
    atomically."""
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = record[
        "base"
    ]  # a name a reader can load, not a cache folder
    model.save_pretrained(
        scratch, save_embedding_layers=False
    )  # no look-up of the base's vocabulary on the Hub
    tokenizer.save_pretrained(scratch)
    atomic_write_json(scratch / "training.json", record)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def adapter_key(model) -> str:
    """16 hex digits that change with the adapter's weights as they are now."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def base_record(name: str, dtype: str, revision: str, quantised: bool = False) -> dict:
    """What an adapter must say about its base, for `merge.check_base`; quantised: it was trained on
    NF4 (QLoRA)."""
    return {
        "base": name,
        "base_key": models.key(name, revision=revision),
        "base_revision": models.resolve_revision(name, revision),
        "base_dtype": dtype,
        "base_quantised": quantised,
    }
