"""Loss on assistant positions alone against the model's own loss: seconds of a training step, both
sides in one run.

    python tests/bench/training.py [--model smollm2-135m-instruct] [--length 100] [--answer 0.28]

Prints tokens a CPU second (wall time on a GPU) of forward and backward with LoRA, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    import torch

    from lib import models
    from lib.training import losses, streams, train
    from lib.training.conversations import IGNORED

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--answer", type=float, default=0.28)
    options = parser.parse_args()
    model, _ = models.load(options.model, "float32")
    adapted = train.add_lora(model, 16, 32, 0.05, 1).train()
    ids = torch.randint(100, 10_000, (8, options.length), device=model.device)
    labels = ids.clone()
    labels[:, : int(options.length * (1 - options.answer))] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    lengths = [options.length] * 8
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    flat = {"input_ids": ids.flatten(), "targets": targets.flatten(), "lengths": lengths}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    best = {}
    for _ in range(3):
        sides = {
            "model": lambda: adapted(**batch).loss,
            "ours": lambda: streams.plain_loss(adapted, **flat),
        }
        for name, loss in sides.items():
            start = clock()
            with losses.autocast("bfloat16"):
                value = loss()
            value.backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = max(best.get(name, 0.0), ids.numel() / (clock() - start))
    print(
        f"{options.model}, {options.length} tokens, {options.answer:.0%} with loss: model's own"
        f" {best['model']:.0f}, ours {best['ours']:.0f} tokens/s, ratio"
        f" {best['ours'] / best['model']:.2f}"
    )


if __name__ == "__main__":
    main()
