"""Our decode loop against transformers, same model, prompts and settings, both sides in one run.

    python tests/bench/generation.py [--model smollm2-135m-instruct] [--prompts 24] [--samples 4]
                                     [--tokens 48]
    python tests/bench/generation.py --shape 8b [--out FOLDER]

The first prints tokens a CPU second (wall time on a GPU) of both sides, greedy and k samples a
prompt, and the ratio. The second needs a CUDA card with 80 GB and no download: the
shape of Llama-3.1-8B with random weights, 256 prompt tokens and 256 new
ones, all of one length and then of lengths that a random stop gives, by transformers' `generate`,
its `generate_batch` (paged, without extra packages) and ours at growing batches, beside the bound
of bandwidth and products. It writes tests/bench/results/generation_8b.md and .json; `--tiny`
rehearses it on a CPU and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

QUESTIONS = [
    "What is 13 * 7? Think step by step.",
    "Write a Python function that reverses a list.",
    "Tom has 5 apples, buys 7 more and eats 3. How many are left?",
    "Name three things that float on water, and say why they do.",
]
# stop tokens of the run with random lengths: one in 256 tokens drawn evenly from 128 K ends an
# answer
STOPS = 500


def theirs(model, tokenizer, texts, samples: int, tokens: int, temperature: float) -> int:
    """transformers' own generate on one left-padded batch; returns the tokens it made."""
    import torch

    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
        model.device
    )
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature
        else {"do_sample": False}
    )
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=tokens, num_return_sequences=samples, **sampling
        )
    return made(model, tokenizer, out[:, inputs["input_ids"].shape[1] :])


def made(model, tokenizer, new) -> int:
    """New tokens up to and with the first stop token of each row, [rows, length]."""
    import torch

    from lib.generation import generate

    stopped = torch.isin(
        new, torch.tensor(generate.stop_ids(model, tokenizer), device=new.device)
    ).int()
    return int((stopped.cumsum(1) - stopped == 0).sum())


def paged(model, tokenizer, texts, tokens: int, temperature: float) -> int:
    """transformers' continuous batching over a paged cache; returns the tokens it made."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from lib.generation import generate

    sampling = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    settings = GenerationConfig(
        max_new_tokens=tokens,
        eos_token_id=generate.stop_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    batching = ContinuousBatchingConfig(max_requests_per_batch=len(ids), allow_block_sharing=False)
    if model.device.type == "cpu":
        batching.num_blocks, batching.max_batch_tokens, batching.block_size = 64, 128, 16
    found = model.generate_batch(
        ids, generation_config=settings, continuous_batching_config=batching
    )
    assert len(found) == len(ids), f"{len(found)} answers for {len(ids)} prompts"
    return sum(len(answer.generated_tokens) for answer in found.values())


def small(options) -> None:
    """Both sides on a real model."""
    import torch

    from lib import attention, models
    from lib.generation import generate

    model, tokenizer = models.load(options.model)
    prompts = [f"{QUESTIONS[i % len(QUESTIONS)]} (question {i})" for i in range(options.prompts)]
    texts = [generate.render(tokenizer, generate.as_messages(prompt)) for prompt in prompts]
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    print(
        f"{options.model}, {model.device}, {options.prompts} prompts, {options.tokens} new tokens"
        " at most"
    )
    for samples, temperature in ((1, 0.0), (options.samples, 0.7)):
        speeds = {}
        for _ in range(2):  # alternate, keep the better of two
            model.set_attn_implementation("sdpa")
            start = clock()
            count = theirs(model, tokenizer, texts, samples, options.tokens, temperature)
            speeds["transformers"] = max(speeds.get("transformers", 0), count / (clock() - start))
            model.set_attn_implementation(attention.ATTENTION)
            start = clock()
            rows = generate.generate(
                model,
                tokenizer,
                prompts,
                n=samples,
                temperature=temperature,
                max_new_tokens=options.tokens,
                batch_size=128,
            )
            count = sum(sample["tokens"] for row in rows for sample in row)
            speeds["ours"] = max(speeds.get("ours", 0), count / (clock() - start))
        print(
            f"{samples} sample(s) at T {temperature}: transformers {speeds['transformers']:.0f},"
            f" ours {speeds['ours']:.0f} tokens/s, ratio"
            f" {speeds['ours'] / speeds['transformers']:.2f}"
        )


def bound(batch: int, prompt: int, new: int, tflops: float = 650, tb_s: float = 3.0) -> float:
    """Tokens/s no decoder beats on one H100: a step reads weights and cache, or multiplies,
    whichever takes longer.

    Rates are measured ones of this kind of card (650 TFLOP/s in products, 3.0 TB/s); cache 128 KiB
    a token.
    """
    import train_8b

    weights, layers = train_8b.products(), train_8b.products(layers_only=True)
    seconds = batch * prompt * 2 * layers / (tflops * 1e12)
    for i in range(new):
        moved = 2 * weights + batch * (prompt + i) * 32 * 2 * 8 * 128 * 2
        seconds += max(moved / (tb_s * 1e12), batch * 2 * weights / (tflops * 1e12))
    return batch * new / seconds


def shape_8b(options) -> None:
    """All sides on random weights of the 8B's shape; a row as each is done."""
    import torch
    import train_8b
    from transformers import GenerationConfig

    from lib import attention
    from lib.generation import decoding_graph, generate
    from tests import tiny

    out, rows, tokenizer = options.out, [], tiny.tokenizer()
    out.mkdir(parents=True, exist_ok=True)
    prompt, new, batches = (24, 8, (4, 8)) if options.tiny else (256, 256, (128, 256, 512))
    model = train_8b.build(adapters=False).eval()
    model.config.use_cache = True
    attention.register()
    empty = len(
        tokenizer(generate.render(tokenizer, generate.as_messages("")), add_special_tokens=False)[
            "input_ids"
        ]
    )
    words = max(1, prompt - empty)
    prompts = [f"{i:04d}".ljust(words, "x")[:words] for i in range(2 * batches[-1])]
    spread = range(3, model.config.vocab_size, max(1, model.config.vocab_size // STOPS))

    def measure(
        name: str, lengths: str, batch: int, total: int, temperature: float, attention: str, side
    ) -> None:
        torch.manual_seed(1)
        stops = list(spread) if lengths == "random" else [2]
        model.generation_config = GenerationConfig(
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
        )
        texts = [generate.render(tokenizer, generate.as_messages(each)) for each in prompts[:total]]

        def run():
            model.set_attn_implementation(attention)
            speeds, count = [], 0
            for _ in range(
                2
            ):  # the first pays for what is made once; the better one counts, for all sides
                train_8b.fresh()
                start = train_8b.clock()
                count = side(texts, prompts[:total], batch, temperature)
                speeds.append(count / (train_8b.clock() - start))
            row = {
                "name": name,
                "lengths": lengths,
                "batch": batch,
                "prompts": total,
                "tok_s": max(speeds),
                "both": [round(speed) for speed in speeds],
                "tokens": count,
                "peak_gib": train_8b.peak_gib(),
            }
            if lengths == "fixed":
                most = bound(batch, prompt, new)
                row |= {"bound_tok_s": most, "of_bound": row["tok_s"] / most}
            rows.append(row)
            train_8b.emit(out, row)

        train_8b.attempt(out, f"{name}, {lengths}, {batch}", run)

    def ours(texts, prompts, batch, temperature):
        found = generate.generate(
            model, tokenizer, prompts, temperature=temperature, max_new_tokens=new, batch_size=batch
        )
        return sum(sample["tokens"] for row in found for sample in row)

    def transformers_batches(texts, prompts, batch, temperature):
        return sum(
            theirs(model, tokenizer, texts[at : at + batch], 1, new, temperature)
            for at in range(0, len(texts), batch)
        )

    def transformers_paged(texts, prompts, batch, temperature):
        return paged(model, tokenizer, texts, new, temperature)

    def kernel_by_kernel(*given):
        usable, decoding_graph.usable = decoding_graph.usable, lambda model: False
        try:
            return ours(*given)
        finally:
            decoding_graph.usable = usable

    own, most = attention.ATTENTION, batches[-1]
    for batch in batches:
        measure("ours", "fixed", batch, batch, 0.0, own, ours)
    measure("ours, kernel by kernel", "fixed", batches[-2], batches[-2], 0.0, own, kernel_by_kernel)
    measure(
        "transformers generate",
        "fixed",
        batches[-2],
        batches[-2],
        0.0,
        "sdpa",
        transformers_batches,
    )
    measure("transformers generate", "fixed", most, most, 0.0, "sdpa", transformers_batches)
    measure("ours", "random", most, 2 * most, 1.0, own, ours)
    measure("transformers generate", "random", most, 2 * most, 1.0, "sdpa", transformers_batches)
    measure(
        "transformers generate_batch, paged sdpa",
        "fixed",
        batches[0],
        batches[0],
        0.0,
        "paged|sdpa",
        transformers_paged,
    )
    if not options.tiny:
        write(rows, train_8b.device(), options.results)


def write(rows: list[dict], about: dict, folder: Path) -> None:
    """generation_8b.md and .json; a side that failed has no row."""
    lines = [
        "# Generation at the 8B's shape",
        "",
        ", ".join(f"{k} {v}" for k, v in about.items()) + ".",
        "",
        (
            "256 prompt tokens, at most 256 new ones. *fixed*: greedy, every answer 256 long;"
            " *random*: sampled, an answer ends with one in 256 tokens. Two runs each, the better"
            " one."
        ),
        "",
        "| what | lengths | batch | prompts | new tokens/s | bound | of the bound | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        limit = (
            f"{row['bound_tok_s']:,.0f} | {row['of_bound']:.0%}" if "bound_tok_s" in row else " | "
        )
        lines.append(
            f"| {row['name']} | {row['lengths']} | {row['batch']} | {row['prompts']} |"
            f" {row['tok_s']:,.0f} | {limit} | {row['peak_gib']:.1f} |"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation_8b.md").write_text("\n".join(lines) + "\n")
    (folder / "generation_8b.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument(
        "--shape", choices=["8b"], help="random weights of this shape instead of --model"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="with --shape: a toy on a CPU, to rehearse"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of rows.jsonl")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the table",
    )
    options = parser.parse_args()
    shape_8b(options) if options.shape else small(options)


if __name__ == "__main__":
    main()
