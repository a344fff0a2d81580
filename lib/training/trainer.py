"""transformers' Trainer over flat batches that are cut into pieces: what `train.fit` runs.

Only the sampler, the two places where a batch becomes a loss, and what is noted on the way are
ours; optimiser, schedule, clipping, logging, evaluation and checkpoints are transformers' own.
Imports torch and transformers: import this inside functions.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import torch
import transformers

from lib.files import atomic_write_json
from lib.training import checkpoints, streams
from lib.training.conversations import IGNORED
from lib.training.losses import autocast

COLUMNS = ["id", "input_ids", "labels", "length"]  # of a row of `conversations.dataset`


def arguments(folder: Path, settings: dict):
    """TrainingArguments of `train.fit`: gradients are clipped at norm 1, nothing decays.

    Raises ValueError when a step's conversations cannot be shared out evenly.
    """
    on_gpu = torch.cuda.is_available()
    made = transformers.TrainingArguments(
        output_dir=str(folder),
        seed=settings["seed"],
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        **_optimisation(settings),
        **_record(settings),
    )
    # one process drives one GPU; several take lib.training.train_worker
    made._n_gpu = min(made.n_gpu, 1)
    effective, ranks = settings["effective_batch"], made.world_size
    if effective % ranks:
        raise ValueError(f"effective_batch {effective} is not a multiple of {ranks} GPUs")
    made.per_device_train_batch_size = effective // ranks
    made.per_device_eval_batch_size = max(1, min(effective // ranks, 16))
    return made


def _optimisation(settings: dict) -> dict:
    return {
        "num_train_epochs": settings["epochs"],
        "max_steps": settings["max_steps"] or -1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings["warmup_share"],  # below 1, a share of the steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }


def _record(settings: dict) -> dict:
    """When it is evaluated, saved and logged, and what is counted."""
    return {
        "eval_strategy": "steps",
        "eval_steps": settings["eval_steps"],
        "save_strategy": "steps",
        "save_steps": settings["eval_steps"],
        "save_total_limit": 2,
        "load_best_model_at_end": settings["early_stopping_patience"] > 0,
        "logging_steps": 1,
        "prediction_loss_only": True,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": [],
        "disable_tqdm": True,
    }


def forward_of_pieces(model, fast, dtype: str):
    """A forward for `model`: a piece of a flat batch gives its loss; anything else is as before."""
    original = model.forward

    def forward(*arguments, piece=None, items=None, first=True, **named):
        if piece is None:
            return original(*arguments, **named)
        if fast:
            return fast.loss(**piece, items=items, changed=first)
        with autocast(dtype):
            return streams.plain_loss(model, **piece, items=items)

    return forward


class PieceTrainer(transformers.Trainer):
    """A Trainer whose model has the forward of `forward_of_pieces` while it trains.

    conversations: of a step, on all GPUs together; budget: tokens held at once, with their padding
    where `padded`.
    """

    def __init__(self, *, conversations: int, budget: int, padded: bool, **options):
        super().__init__(**options)
        self.conversations, self.budget, self.padded = conversations, budget, padded

    def _get_train_sampler(self, dataset=None):
        return streams.level_sampler(
            list(self.train_dataset["length"]),
            self.conversations,
            self.args.world_size,
            self.args.process_index,
            self.args.seed,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs, total = self._prepare_inputs(inputs), 0.0
        pieces, ranks = streams.cut(inputs, self.budget, self.padded), self.args.world_size
        for number, piece in enumerate(pieces, 1):
            # gradients of several GPUs are averaged once, with the last piece
            waiting = ranks > 1 and number < len(pieces)
            with model.no_sync() if waiting else contextlib.nullcontext():
                loss = model(piece=piece, items=num_items_in_batch, first=number == 1) * ranks
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        items = (inputs["shift_labels"] != IGNORED).sum()
        pieces = streams.cut(inputs, self.budget, self.padded)
        loss = sum(model(piece=piece, items=items) for piece in pieces)
        return (loss, {}) if return_outputs else loss


class Watcher(transformers.TrainerCallback):
    """Progress lines, task probe, training seconds over all sessions, mark of a whole checkpoint.

    folder: of the checkpoints; probe: function() -> score, or None.
    """

    def __init__(self, folder: Path, probe=None):
        self.folder, self.probe = folder, probe
        self.scores, self.seconds, self.printed = [], 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        checkpoint = checkpoints.complete(self.folder)
        if checkpoint:
            mark = json.loads((checkpoint / "complete.json").read_text())
            self.scores, self.seconds = mark["probe"], mark["seconds"]
            self._say(state, f"resuming from step {state.global_step} of {state.max_steps}")
        self.started = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        now = time.perf_counter()
        if "loss" in (logs or {}) and now - self.printed > 10:
            self.printed = now
            rate = state.num_input_tokens_seen / max(self.seconds + now - self.started, 1e-9)
            at = f"step {state.global_step}/{state.max_steps}"
            self._say(state, f"{at}  loss {logs['loss']:.3f}  {rate:.0f} tok/s")

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self._pause()

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        at = f"step {state.global_step}/{state.max_steps}"
        line = f"{at}  validation loss {metrics['eval_loss']:.4f}"
        scored = any(score["step"] == state.global_step for score in self.scores)
        if self.probe is not None and not scored:
            model.eval()
            self.scores.append({"step": state.global_step, "score": self.probe()})
            line += f"  probe {self.scores[-1]['score']:.3f}"
        self._say(state, line)
        self.started = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        self._pause()
        if not state.is_world_process_zero:
            return
        path = self.folder / f"checkpoint-{state.global_step}"
        mark = {"seconds": self.seconds, "probe": self.scores}
        atomic_write_json(path / "complete.json", mark)

    def on_train_end(self, args, state, control, **kwargs):
        self._pause()

    @staticmethod
    def _say(state, line: str) -> None:
        if state.is_world_process_zero:
            print(line, flush=True)

    def _pause(self):
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now
