"""LoRA fine-tuning on the full-precision base: loss on assistant tokens, length-grouped batches, exact resume."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path

from lib import models
from lib.conversations import IGNORED, collate
from lib.files import atomic_write_json

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# what `fit` takes from a notebook's parameters
SETTINGS = ("epochs", "max_steps", "learning_rate", "warmup_share", "effective_batch", "micro_batch", "eval_steps",
            "gradient_checkpointing", "early_stopping_patience", "seed", "dtype")  # fmt: skip

# Dense bf16 peak of a card in TFLOP/s, from the vendor's data sheets; a device that is not listed gets no MFU.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "L40S": 362.0, "RTX 4090": 165.0}


def add_lora(model, r: int, alpha: int, dropout: float, seed: int):
    """PEFT model with LoRA (Hu et al. 2021) on all seven linears; adapter weights in float32, base frozen as it is."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LINEARS, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def autocast(dtype: str):
    """Context in which matrix products run in `dtype` while weights keep theirs."""
    import torch

    return torch.autocast(models.device().type, getattr(torch, dtype), enabled=dtype != "float32")


def example_losses(model, examples, pad_id: int, dtype: str, batch_tokens: int = 4096):
    """Mean negative log-likelihood a label token for each example, in nats. Returns float64 array [examples]."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    lengths = list(examples["length"])
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    losses, was_training = np.zeros(len(lengths)), model.training
    model.eval()
    with torch.inference_mode(), autocast(dtype):
        while order:
            take = max(1, min(len(order), batch_tokens // lengths[order[0]]))
            while take > 1 and take * lengths[order[take - 1]] > batch_tokens:
                take -= 1
            index, order = order[:take], order[take:]
            batch = {k: v.to(model.device) for k, v in collate([examples[i] for i in index], pad_id).items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1].float()
            nats = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            losses[index] = (nats.sum(1) / (labels != IGNORED).sum(1)).cpu().numpy()
    model.train(was_training)
    return losses


def assistant_loss(model, batch: dict, items=None):
    """Summed negative log-likelihood of the label tokens over `items` (default: their number), in nats.

    Equal to the model's own loss; but the projection onto the vocabulary, a fifth of a small model's work, runs on the
    positions that carry loss alone. Ratio to the model's own loss: tests/bench/training.py. A batch with `target_ids`
    has the divergence from these targets as its loss (see `lib.sharpen`), of which this is the case of one-hot ones.
    """
    from torch.nn.functional import cross_entropy

    from lib import sharpen

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORED
    hidden = causal.get_decoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    logits = causal.get_output_embeddings()(hidden[:, :-1][learned]).float()
    if "target_ids" in batch:
        nats = sharpen.divergence(logits, batch["target_ids"], batch["target_probabilities"])
    else:
        nats = cross_entropy(logits, labels[learned], reduction="sum")
    return nats / (items if items is not None else learned.sum())


def complete_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint whose writing finished; torn ones, left by a kill, are deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if not (path / "complete.json").exists():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return whole[-1] if whole else None


def fit(model, tokenizer, train, valid, folder: Path, settings: dict, probe=None, fingerprint: str = "",
        targets: Path | None = None) -> dict:
    """Train the adapter; a killed call, made again, goes on from the last complete checkpoint with the same losses.

    Args:
        settings: a value for each name in SETTINGS; max_steps 0 goes by epochs, early_stopping_patience 0 never stops
            early, dtype is that of matrix products while weights keep theirs.
        probe: function() -> score in [0, 1], called at every evaluation; None for no probe.
        fingerprint: of data and settings; checkpoints of another fingerprint are discarded, not continued.
        targets: soft targets of some of the examples by their id, written by `sharpen.write`.
    Returns {history (Trainer's log), probe (list of {step, score}), steps, finished, tokens, seconds, resumed_from};
        tokens are non-padding ones, seconds exclude evaluation. Gradients are clipped at norm 1, nothing decays.
    """
    import torch
    import transformers
    from peft.helpers import disable_input_dtype_casting

    from lib import sharpen

    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "fingerprint.json"
    if not stamp.exists() or json.loads(stamp.read_text())["fingerprint"] != fingerprint:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        atomic_write_json(stamp, {"fingerprint": fingerprint})
    resume = complete_checkpoint(folder)
    effective, micro = settings["effective_batch"], settings["micro_batch"]
    if effective % micro:
        raise ValueError(f"effective_batch {effective} is not a multiple of micro_batch {micro}")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings["epochs"],
        max_steps=settings["max_steps"] or -1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=settings["warmup_share"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=effective // micro,
        gradient_checkpointing=settings["gradient_checkpointing"],
        train_sampling_strategy="group_by_length",
        length_column_name="length",
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
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        seed=settings["seed"],
    )
    columns, soft = ["id", "input_ids", "labels", "length"], sharpen.read(targets)
    watcher = _watcher(folder, probe)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if model is not self.accelerator.unwrap_model(model):  # wrapped for several GPUs: its forward synchronises
                assert "target_ids" not in inputs, "soft targets are trained on one GPU: set CUDA_VISIBLE_DEVICES=0"
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with autocast(settings["dtype"]):
                loss = assistant_loss(model, inputs, num_items_in_batch)
            return (loss, {}) if return_outputs else loss

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train.select_columns(columns),
        eval_dataset=valid.select_columns(columns),
        data_collator=lambda examples: sharpen.attach(collate(examples, tokenizer.pad_token_id), examples, soft),
        callbacks=[watcher],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if settings["early_stopping_patience"]:
        trainer.add_callback(transformers.EarlyStoppingCallback(settings["early_stopping_patience"]))
    # peft would cast every adapter input to float32; under autocast that only costs time
    casting = disable_input_dtype_casting(model) if settings["dtype"] == "bfloat16" else contextlib.nullcontext()
    with casting:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {
        "history": trainer.state.log_history,
        "probe": watcher.scores,
        "steps": trainer.state.global_step,
        "finished": trainer.state.global_step >= trainer.state.max_steps or settings["early_stopping_patience"] > 0,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": watcher.seconds,
        "resumed_from": int(resume.name.split("-")[1]) if resume else 0,
    }


def _watcher(folder: Path, probe):
    """Trainer callback: progress lines, task probe, training seconds over all sessions, mark of a whole checkpoint."""
    import transformers

    class Watcher(transformers.TrainerCallback):
        def __init__(self):
            self.scores, self.seconds, self.printed = [], 0.0, 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            checkpoint = complete_checkpoint(folder)
            if checkpoint:
                mark = json.loads((checkpoint / "complete.json").read_text())
                self.scores, self.seconds = mark["probe"], mark["seconds"]
                print(f"resuming from step {state.global_step} of {state.max_steps}", flush=True)
            self.started = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            now = time.perf_counter()
            if "loss" in (logs or {}) and now - self.printed > 10:
                self.printed = now
                rate = state.num_input_tokens_seen / max(self.seconds + now - self.started, 1e-9)
                print(
                    f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}  {rate:.0f} tok/s", flush=True
                )

        def on_step_end(self, args, state, control, **kwargs):
            if control.should_evaluate or control.should_save or control.should_training_stop:
                self._pause()

        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            line = f"step {state.global_step}/{state.max_steps}  validation loss {metrics['eval_loss']:.4f}"
            if probe is not None and not any(score["step"] == state.global_step for score in self.scores):
                model.eval()
                self.scores.append({"step": state.global_step, "score": probe()})
                line += f"  probe {self.scores[-1]['score']:.3f}"
            print(line, flush=True)
            self.started = time.perf_counter()

        def on_save(self, args, state, control, **kwargs):
            self._pause()
            path = folder / f"checkpoint-{state.global_step}"
            atomic_write_json(path / "complete.json", {"seconds": self.seconds, "probe": self.scores})

        def on_train_end(self, args, state, control, **kwargs):
            self._pause()

        def _pause(self):
            now = time.perf_counter()
            self.seconds += now - self.started
            self.started = now

    return Watcher()


def save_adapter(model, tokenizer, folder: Path, record: dict) -> None:
    """Write adapter, tokenizer and training.json (base name, base key, revision, dtype, settings) atomically."""
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = record[
        "base"
    ]  # a name a reader can load, not a cache folder
    model.save_pretrained(scratch, save_embedding_layers=False)  # no look-up of the base's vocabulary on the Hub
    tokenizer.save_pretrained(scratch)
    atomic_write_json(scratch / "training.json", record)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def mfu(tokens_per_second: float, parameters: int, device_name: str) -> float | None:
    """Model FLOPs utilisation of LoRA training: 4 FLOPs a parameter and token (forward, and backward to the inputs).

    None where the peak of the device is not known.
    """
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in device_name), None)
    return 4 * parameters * tokens_per_second / (peak * 1e12) if peak else None


def peak_memory_bytes() -> int:
    """Peak memory of the device (CUDA) or of this process (CPU), bytes."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def base_record(name: str, dtype: str, revision: str, quantised: bool = False) -> dict:
    """What an adapter must say about its base, for `merge.check_base`; quantised: it was trained on NF4 (QLoRA)."""
    return {
        "base": name,
        "base_key": models.key(name, revision=revision),
        "base_revision": models.resolve_revision(name, revision),
        "base_dtype": dtype,
        "base_quantised": quantised,
    }
