"""llmcompressor without its noise: one call that runs a recipe over calibration text, in place."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path


def run(model, tokenizer, sequences: list[list[int]], recipe: list, log: Path, batch: int = 8):
    """Apply llmcompressor modifiers to `model` in place, layer after layer, and return it.

    sequences: equal lengths (`calibration.sequences`); empty for a recipe that needs no data.
    batch: sequences in one forward; all have one length, so a batch changes the speed and not what
    is counted. log: file for what llmcompressor prints (thousands of lines); the error of a failed
    run names it.
    """
    import torch

    log.parent.mkdir(parents=True, exist_ok=True)
    with quiet(log), _no_pinning():
        from llmcompressor import oneshot

        options = {}
        if sequences:
            ids = torch.tensor(sequences)
            rows = [
                {"input_ids": part, "attention_mask": torch.ones_like(part)}
                for part in ids.split(batch)
            ]
            # batches are ready-made; None as batch size passes them through as they are
            options = {
                "dataset": torch.utils.data.DataLoader(rows, batch_size=None),
                "pipeline": "sequential",
            }
        oneshot(model=model, processor=tokenizer, recipe=recipe, **options)
        _release(model)
    return model


def _release(model) -> None:
    """Take back the offloading around every module; it also splits a shared vocabulary table."""
    from compressed_tensors.offload import remove_dispatch

    remove_dispatch(model, onload_tensors=True)
    model.tie_weights()  # does nothing where the config says that the tables are separate


@contextlib.contextmanager
def quiet(log: Path):
    """Send all that is printed, logged through loguru or drawn by tqdm to `log`; errors pass."""
    # else llmcompressor sets it, and says so
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # tracing is what the pipeline does
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    outside = sys.stderr
    try:
        with (
            open(log, "a", encoding="utf-8") as handle,
            contextlib.redirect_stdout(handle),
            contextlib.redirect_stderr(handle),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            import llmcompressor  # noqa: F401 (its import sets loguru up, on the standard output)
            from loguru import logger

            logger.remove()
            sink = logger.add(handle, level="INFO")
            try:
                yield
            finally:
                logger.remove(sink)
    except Exception as error:
        error.add_note(f"llmcompressor's own messages: {log.name}")
        raise
    finally:
        # handlers of standard logging that were made inside point to a closed file
        for name in ["", *logging.root.manager.loggerDict]:
            for handler in logging.getLogger(name).handlers:
                if getattr(getattr(handler, "stream", None), "closed", False):
                    handler.stream = outside


@contextlib.contextmanager
def _no_pinning():
    """AWQ pins memory for copies to an accelerator; without one torch raises, so it is left out."""
    import torch

    if torch.accelerator.is_available():
        yield
        return
    from llmcompressor.pipelines.cache import IntermediatesCache

    before = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = before
