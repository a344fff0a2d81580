"""Our decode loop against transformers' `generate`, same model, prompts and greedy settings, both sides in one run.

    python tests/bench/generation.py [--model smollm2-135m-instruct] [--prompts 24] [--samples 4] [--tokens 48]

Prints tokens a CPU second of both sides (wall time on a GPU), greedy and k samples a prompt, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

QUESTIONS = [
    "What is 13 * 7? Think step by step.",
    "Write a Python function that reverses a list.",
    "Tom has 5 apples, buys 7 more and eats 3. How many are left?",
    "Name three things that float on water, and say why they do.",
]


def theirs(model, tokenizer, texts, samples: int, tokens: int, temperature: float) -> int:
    """transformers' own generate on one left-padded batch; returns the tokens it made."""
    import torch

    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, num_return_sequences=samples, **sampling)
    new = out[:, inputs["input_ids"].shape[1] :]
    return int((new != tokenizer.pad_token_id).sum()) + int((new == tokenizer.eos_token_id).any(1).sum())


def main() -> None:
    import torch

    from lib import decoding, generate, models

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    model, tokenizer = models.load(options.model)
    prompts = [f"{QUESTIONS[i % len(QUESTIONS)]} (question {i})" for i in range(options.prompts)]
    texts = [generate.render(tokenizer, generate.as_messages(prompt)) for prompt in prompts]
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    print(f"{options.model}, {model.device}, {options.prompts} prompts, {options.tokens} new tokens at most")
    for samples, temperature in ((1, 0.0), (options.samples, 0.7)):
        speeds = {}
        for _ in range(2):  # alternate, keep the better of two
            model.set_attn_implementation("sdpa")
            start = clock()
            made = theirs(model, tokenizer, texts, samples, options.tokens, temperature)
            speeds["transformers"] = max(speeds.get("transformers", 0), made / (clock() - start))
            model.set_attn_implementation(decoding.ATTENTION)
            start = clock()
            rows = generate.generate(
                model, tokenizer, prompts, n=samples, temperature=temperature, max_new_tokens=options.tokens,
                batch_size=128,
            )  # fmt: skip
            made = sum(sample["tokens"] for row in rows for sample in row)
            speeds["ours"] = max(speeds.get("ours", 0), made / (clock() - start))
        print(
            f"{samples} sample(s) at T {temperature}: transformers {speeds['transformers']:.0f}, ours "
            f"{speeds['ours']:.0f} tokens/s, ratio {speeds['ours'] / speeds['transformers']:.2f}"
        )


if __name__ == "__main__":
    main()
