"""What a GGUF file keeps of its source model: loss, divergence, token agreement and speed, measured
on the file itself."""

from __future__ import annotations

import time
from pathlib import Path

from lib import stats
from lib.files import write_jsonl


def reference(folder: str, examples, keep: Path) -> Path:
    """Log-probabilities of the 16-bit source model at every answer token, float32 [answer tokens,
    vocabulary] in `keep`.

    folder: checkpoint, computed by transformers in float32. examples: `conversations.dataset`; rows
    follow its order. On disk, because a vocabulary of 128 thousand makes gigabytes of them.
    """
    import numpy as np
    import torch

    from lib import models

    loaded, _ = models.load(folder, "float32")
    keep.parent.mkdir(parents=True, exist_ok=True)
    total = sum(len(answer_places(each)) for each in examples)
    table = np.lib.format.open_memmap(keep, "w+", np.float32, (total, loaded.config.vocab_size))
    at = 0
    with torch.inference_mode():
        for example in examples:
            places = answer_places(example)
            logits = loaded(torch.tensor([example["input_ids"]], device=loaded.device)).logits[
                0, places
            ]
            table[at : at + len(places)] = logits.float().log_softmax(-1).cpu().numpy()
            at += len(places)
    table.flush()
    return keep


def answer_places(example: dict) -> list[int]:
    """Positions whose next token is the assistant's, in an example of `conversations.dataset`."""
    return [place - 1 for place, label in enumerate(example["labels"]) if place and label >= 0]


def divergence(model, examples, keep: Path) -> dict[str, list]:
    """A loaded `runtime.Gguf` against `reference`, summed a conversation over the assistant's
    tokens.

    Returns {"nats" (loss), "tokens", "right" (most likely token is the written one), "same" (most
    likely token is the source model's), "kl" (nats from the source model), "seconds"} lists in the
    order of `examples`.
    """
    import numpy as np

    from lib.compression.runtime import log_softmax

    table, at = np.load(keep, mmap_mode="r"), 0
    found: dict[str, list] = {
        key: [] for key in ("nats", "tokens", "right", "same", "kl", "seconds")
    }
    for example in examples:
        places, ids = answer_places(example), list(example["input_ids"])
        began = time.perf_counter()
        logits = model.logits(ids[: places[-1] + 1], places[0])[
            [place - places[0] for place in places]
        ]
        found["seconds"].append(time.perf_counter() - began)
        mine, source = log_softmax(logits), np.asarray(table[at : at + len(places)])
        at += len(places)
        written = np.array([ids[place + 1] for place in places])
        found["nats"].append(float(-mine[np.arange(len(places)), written].sum()))
        found["tokens"].append(len(places))
        found["right"].append(int((mine.argmax(-1) == written).sum()))
        found["same"].append(int((mine.argmax(-1) == source.argmax(-1)).sum()))
        found["kl"].append(float((np.exp(source) * (source - mine)).sum()))
    return found


def source_losses(examples, keep: Path) -> dict[str, list]:
    """The same sums for the source model itself, from its stored log-probabilities."""
    import numpy as np

    table, at = np.load(keep, mmap_mode="r"), 0
    found: dict[str, list] = {key: [] for key in ("nats", "tokens", "right")}
    for example in examples:
        places = answer_places(example)
        rows = np.asarray(table[at : at + len(places)])
        at += len(places)
        written = np.array([example["input_ids"][place + 1] for place in places])
        found["nats"].append(float(-rows[np.arange(len(places)), written].sum()))
        found["tokens"].append(len(places))
        found["right"].append(int((rows.argmax(-1) == written).sum()))
    return found


def speed(model, prompt: list[int], tokens: int) -> float:
    """Tokens a second of greedy decoding, one sequence, prompt not counted, end tokens ignored."""
    import numpy as np

    model.clear()
    token = int(
        model.decode([(t, i, 0, i == len(prompt) - 1) for i, t in enumerate(prompt)])[0].argmax()
    )
    began = time.perf_counter()
    for step in range(tokens):
        token = int(np.argmax(model.decode([(token, len(prompt) + step, 0, True)])[0]))
    return tokens / (time.perf_counter() - began)


def point(
    path: Path,
    examples,
    keep: Path,
    prompt: list[int],
    *,
    tokens: int,
    threads: int,
    adapters=None,
    scales=None,
) -> dict:
    """Bytes, `divergence` and speed of one file (with adapters at their scales), as one plain
    dict."""
    from lib.compression import sizes
    from lib.compression.from_gguf import type_counts
    from lib.compression.runtime import Gguf

    longest = max(max(len(each["input_ids"]) for each in examples), len(prompt) + tokens)
    with Gguf(path, context=longest + 8, sequences=1, threads=threads, adapters=adapters) as model:
        if adapters:
            model.set_adapters(scales or [1.0] * len(adapters))
        found = divergence(model, examples, keep)
        rate = speed(model, prompt, tokens)
    return {
        "file": Path(path).name,
        "bytes": sizes.measure(path, entropy=False)["bytes"],
        "types": type_counts(path),
        "tokens_per_second": rate,
        **found,
    }


def rung(
    source: Path,
    ftype: str,
    out: Path,
    matrix,
    examples,
    keep: Path,
    prompt: list[int],
    settings: dict,
) -> dict:
    """Quantise the 16-bit GGUF `source` to `out` and measure it as `point` does; ftype F16 measures
    the source itself.

    The result is kept beside `out` as JSON, and taken from there while source, matrix, rows and
    settings are the same.
    settings: {"tokens", "threads", "keep" (leave the file), "requantize", "stamp" (names source,
    matrix and rows)}.
    """
    import json

    from lib.compression import llamacpp
    from lib.files import atomic_write_json

    told, whole = (
        out.with_name(f"{out.name}.json"),
        {
            **settings,
            "ftype": ftype,
            "imatrix": bool(matrix),
        },
    )
    if told.exists() and (out.exists() or not settings["keep"] or ftype == "F16"):
        found = json.loads(told.read_text(encoding="utf-8"))
        if found["settings"] == whole:
            return found
    began = time.perf_counter()
    if ftype != "F16":
        llamacpp.quantize(
            source,
            out,
            ftype,
            matrix,
            requantize=settings["requantize"],
            threads=settings["threads"],
        )
    seconds = time.perf_counter() - began
    path = out if ftype != "F16" else source
    found = point(
        path, examples, keep, prompt, tokens=settings["tokens"], threads=settings["threads"]
    )
    found |= {"settings": whole, "ftype": ftype, "quantise_seconds": seconds}
    if not settings["keep"] and ftype != "F16":
        out.unlink()
    atomic_write_json(told, found)
    return found


def estimates(row: dict, seed: int) -> dict[str, dict]:
    """{"perplexity", "kl" (mean nats a token), "agreement" (share of tokens)} of a `point`,
    intervals over conversations."""
    import numpy as np

    from lib.compression.measure import perplexity

    tokens = np.array(row["tokens"])
    clusters = np.repeat(np.arange(len(tokens)), tokens)
    means = {
        key: np.repeat(np.array(row[key]) / tokens, tokens) for key in ("kl", "same") if key in row
    }
    found = {"perplexity": perplexity(row, seed)}
    if means:
        found["kl"] = stats.mean_ci(
            means["kl"], seed, clusters=clusters, bounds=(0.0, float("inf")), unit="nats"
        )
        found["agreement"] = stats.mean_ci(
            means["same"], seed, clusters=clusters, bounds=(0.0, 1.0), unit="share"
        )
    return found


def answer_agreement(model, loaded, tokenizer, prompts: list[str], tokens: int) -> list[dict]:
    """Greedy answers of a GGUF against transformers in float32: {"prompt", "same_ids", "same_text",
    "theirs", "ours", "first"}.

    same_ids: llama.cpp's tokenizer gives the prompt's ids; first: place of the first different
    token, None when all are equal.
    """
    from lib.generation import generate

    texts = [generate.render(tokenizer, generate.as_messages(prompt)) for prompt in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ours = model.generate(ids, max_new_tokens=tokens)
    theirs = generate.generate(
        loaded, tokenizer, prompts, max_new_tokens=tokens, progress="transformers"
    )
    rows = []
    for prompt, text, row, (answer,), (other,) in zip(
        prompts, texts, ids, ours, theirs, strict=True
    ):
        written = tokenizer.decode(answer["ids"], skip_special_tokens=True)
        expected = tokenizer(other["text"], add_special_tokens=False)["input_ids"]
        pairs = zip(answer["ids"], expected, strict=False)
        first = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        rows.append(
            {
                "prompt": prompt,
                "same_ids": model.tokenize(text) == row,
                "same_text": written == other["text"],
                "ours": written,
                "theirs": other["text"],
                "first": first,
            }
        )
    return rows


def answer(
    model,
    tokenizer,
    items: list[dict],
    out: Path,
    *,
    system: str,
    max_new_tokens: int,
    seed: int,
    n: int = 1,
    temperature: float = 0.0,
) -> None:
    """Answers of a loaded `runtime.Gguf` to evaluation items, raw, as generations-<system>.jsonl
    for `answers.read`.

    Rows: {"id", "sample", "text", "tokens", "finish", "seconds", "logprobs", "pieces" (text of each
    token)}.
    """
    from lib.evaluation import answers
    from lib.generation import generate

    texts = [generate.render(tokenizer, generate.as_messages(item["prompt"])) for item in items]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    samples = model.generate(
        ids, max_new_tokens=max_new_tokens, n=n, temperature=temperature, seed=seed
    )
    write_jsonl(
        answers.path(out, system),
        (
            {
                "id": item["id"],
                "sample": number,
                "text": tokenizer.decode(row["ids"], skip_special_tokens=True),
                "tokens": len(row["logprobs"]),
                "finish": row["finish"],
                "seconds": row["seconds"],
                "logprobs": [round(value, 5) for value in row["logprobs"]],
                "pieces": [tokenizer.decode([token]) for token in row["ids"]],
            }
            for item, rows in zip(items, samples, strict=True)
            for number, row in enumerate(rows)
        ),
    )


def figure(curves: dict[str, list[dict]], budget: float | None = None):
    """Bytes on disk against perplexity and against KL, a curve a source; rows {"label", "bytes",
    "perplexity", "kl"}."""
    from lib import plots

    fig, axes = plots.figure(2, 1, 11, 4.2)
    for place, key in enumerate(("perplexity", "kl")):
        for (name, rows), colour in zip(curves.items(), plots.CYCLE, strict=False):
            rows = sorted((row for row in rows if row[key] > 0), key=lambda row: row["bytes"])
            axes[place].plot(
                [row["bytes"] / 1e6 for row in rows],
                [row[key] for row in rows],
                "o-",
                color=colour,
                label=name,
            )
            for row in rows:
                axes[place].annotate(
                    row["label"],
                    (row["bytes"] / 1e6, row[key]),
                    fontsize=7,
                    xytext=(3, 4),
                    textcoords="offset points",
                )
        axes[place].set(xscale="log", yscale="log", xlabel="MB on disk")
        axes[place].legend()
        if budget:
            axes[place].axvline(budget / 1e6, color=plots.INK, linestyle="--", linewidth=1)
    axes[0].set(ylabel="perplexity on answers", title="What the bytes buy")
    axes[1].set(ylabel="KL from the source model (nats a token)", title="How far from the source")
    return fig
