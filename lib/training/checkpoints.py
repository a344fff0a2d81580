"""Checkpoints that survive a kill, and what is noted while training goes on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from lib.files import atomic_write_json


def complete(folder: Path, clean: bool = True) -> Path | None:
    """Newest checkpoint whose writing finished; torn ones, left by a kill, are deleted when
    `clean`."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / "complete.json").exists()]
    for path in found if clean else []:
        if path not in whole:
            shutil.rmtree(path)
    return whole[-1] if whole else None


def resume_from(folder: Path, fingerprint: str) -> Path | None:
    """The checkpoint to go on from; those of another fingerprint are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "fingerprint.json"
    if not stamp.exists() or json.loads(stamp.read_text())["fingerprint"] != fingerprint:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        atomic_write_json(stamp, {"fingerprint": fingerprint})
    return complete(folder)


def watcher(folder: Path, probe):
    """Trainer callback: progress lines, task probe, training seconds over all sessions, mark of a
    whole checkpoint."""
    import transformers

    class Watcher(transformers.TrainerCallback):
        def __init__(self):
            self.scores, self.seconds, self.printed = [], 0.0, 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            checkpoint = complete(folder)
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
            line = (
                f"step {state.global_step}/{state.max_steps}  validation loss"
                f" {metrics['eval_loss']:.4f}"
            )
            if probe is not None and not any(
                score["step"] == state.global_step for score in self.scores
            ):
                model.eval()
                self.scores.append({"step": state.global_step, "score": probe()})
                line += f"  probe {self.scores[-1]['score']:.3f}"
            self._say(state, line)
            self.started = time.perf_counter()

        def on_save(self, args, state, control, **kwargs):
            self._pause()
            if not state.is_world_process_zero:
                return
            path = folder / f"checkpoint-{state.global_step}"
            atomic_write_json(
                path / "complete.json", {"seconds": self.seconds, "probe": self.scores}
            )

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

    return Watcher()
