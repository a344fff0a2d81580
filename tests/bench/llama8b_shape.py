"""Train, generate and merge at the shape of Llama-3.1-8B with random weights and the `llama8b`
settings: does it fit?

    python tests/bench/llama8b_shape.py [--steps 6] [--layers 32]

Needs a CUDA card with 80 GB; no download. Prints tokens/s of training and generation, peak memory
of each part, and the divergence of the merged checkpoint from the adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def checkpoint(folder: Path, layers: int) -> str:
    """A random bf16 checkpoint of the 8B's shape, vocabulary of 128,256, with the tests' byte-level
    tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests import tiny

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def main() -> None:
    import torch
    import yaml

    from lib import models
    from lib.files import write_jsonl
    from lib.generation import generate
    from lib.training import conversations, merge, throughput, train

    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    profile = yaml.safe_load((ROOT / "params" / "llama8b" / "10_train_base.yaml").read_text())
    scratch = Path(tempfile.mkdtemp(dir=os.environ.get("SCRATCH")))

    def peak(label: str, start: float, **extra) -> None:
        shown = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in extra.items()
        }
        row = {"part": label, "seconds": round(time.time() - start, 1), **shown}
        print(
            json.dumps(row | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)}),
            flush=True,
        )
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    try:
        print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
        start = time.time()
        base = checkpoint(scratch / "base", options.layers)
        peak("random checkpoint", start)
        texts = [
            {
                "id": f"{i:05d}",
                "instruction": "Tell a story. " * 60,
                "response": f"Once {i}. " * 130,
            }
            for i in range(64 * options.steps)
        ]
        write_jsonl(scratch / "train.jsonl", texts)
        start = time.time()
        model, tokenizer = models.load(base, profile["base_dtype"])
        data, _ = conversations.dataset(
            scratch / "train.jsonl", tokenizer, profile["max_length"], 0, 0, scratch / "cache"
        )
        adapted = train.add_lora(
            model, profile["lora_r"], profile["lora_alpha"], profile["lora_dropout"], 1
        )
        settings = {name: profile.get(name) for name in train.SETTINGS} | {
            "max_steps": options.steps,
            "warmup_share": 0.0,
            "eval_steps": options.steps,
            "seed": 1,
            "dtype": "bfloat16",
            "early_stopping_patience": 0,
        }
        held_out, folder = data.select(range(8)), scratch / "checkpoints"
        result = train.fit(adapted, data, held_out, folder, settings, None, "x")
        speed = result["tokens"] / result["seconds"]
        used = throughput.mfu(speed, model.num_parameters(), torch.cuda.get_device_name())
        losses = [row["loss"] for row in result["history"] if "loss" in row]
        measured = {
            "tokens": result["tokens"],
            "tokens_per_second": speed,
            "mfu": used,
            "losses": losses,
        }
        peak("train", start, **measured)
        for parameter in adapted.parameters():  # a few steps change nothing a merge could lose
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.01)
        record = train.base_record(base, profile["base_dtype"], "")
        train.save_adapter(adapted, tokenizer, scratch / "adapter", record)
        start = time.time()
        questions = [f"Question {i}?" for i in range(64)]
        rows = generate.generate(
            model, tokenizer, questions, n=2, temperature=0.7, max_new_tokens=128, batch_size=128
        )
        made = sum(sample["tokens"] for row in rows for sample in row)
        peak("generate", start, tokens=made, tokens_per_second=made / (time.time() - start))
        del model, adapted
        shutil.rmtree(folder)
        torch.cuda.empty_cache()
        start = time.time()
        merged = merge.merge(
            base, scratch / "adapter", scratch / "merged", profile["base_dtype"], "bfloat16"
        )
        peak("merge", start, bytes=models.bytes_on_disk(str(merged)))
        start = time.time()
        reference = models.load(
            base, "float32", weights=profile["base_dtype"], adapter=scratch / "adapter"
        )[0]
        other = models.load(str(merged), "float32", weights="bfloat16")[0]
        compared = merge.compare_logits(reference, other, [list(range(3, 250))] * 2)
        peak(
            "audit",
            start,
            kl=compared[0]["kl"],
            same_top=compared[0]["same_top"] / compared[0]["positions"],
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
