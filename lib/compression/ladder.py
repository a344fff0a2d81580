"""What a GGUF file keeps of its source model: loss, divergence, agreement, speed, of the file."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lib import models, plots, stats
from lib.compression import llamacpp, sizes
from lib.compression.from_gguf import type_counts
from lib.compression.runtime import Gguf, answer_losses, answer_places, answer_sums
from lib.estimates import Estimate
from lib.files import atomic_write_json, sha256_file
from lib.generation import generate
from lib.training import losses


def reference(folder: str, examples, keep: Path) -> Path:
    """Log-probabilities of the 16-bit source model at every answer token, written to `keep`.

    float32 [answer tokens, vocabulary], rows in the order of `examples`
    (`conversations.dataset`). folder: checkpoint, computed by transformers in float32. On disk,
    because a vocabulary of 128 thousand makes gigabytes of them.
    """
    import numpy as np
    import torch

    model, _ = models.load(folder, "float32")
    keep.parent.mkdir(parents=True, exist_ok=True)
    total = sum(len(answer_places(example)) for example in examples)
    table = np.lib.format.open_memmap(keep, "w+", np.float32, (total, model.config.vocab_size))
    at = 0
    with torch.inference_mode():
        for example in examples:
            places = answer_places(example)
            ids = torch.tensor([example["input_ids"]], device=model.device)
            logits = model(ids).logits[0, places]
            table[at : at + len(places)] = logits.float().log_softmax(-1).cpu().numpy()
            at += len(places)
    table.flush()
    return keep


def source_losses(examples, keep: Path) -> dict[str, list]:
    """Losses of the source model, as `runtime.answer_losses`, from what it left in `keep`."""
    import numpy as np

    table, at = np.load(keep, mmap_mode="r"), 0
    columns: dict[str, list] = {"nats": [], "tokens": [], "right": []}
    for example in examples:
        places = answer_places(example)
        logprobs = np.asarray(table[at : at + len(places)])
        at += len(places)
        written = [example["input_ids"][place + 1] for place in places]
        for key, value in answer_sums(logprobs, written).items():
            columns[key].append(value)
    return columns


def speed(model, prompt: list[int], tokens: int) -> float:
    """Tokens a second of greedy decoding, one sequence, prompt not counted, end tokens ignored."""
    import numpy as np

    model.clear()
    cells = [(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    token = int(model.decode(cells)[0].argmax())
    began = time.perf_counter()
    for step in range(tokens):
        token = int(np.argmax(model.decode([(token, len(prompt) + step, 0, True)])[0]))
    return tokens / (time.perf_counter() - began)


def point(
    path: Path, examples, keep: Path, prompt: list[int], *, tokens: int, threads: int
) -> dict:
    """{"file", "bytes", "types" (tensors a type), "tokens_per_second", and the losses} of a file.

    keep: what `reference` wrote. prompt: token ids, after which `tokens` are decoded for the speed.
    """
    longest = max(*(len(example["input_ids"]) for example in examples), len(prompt) + tokens)
    with Gguf(path, context=longest + 8, sequences=1, threads=threads) as model:
        columns = answer_losses(model, examples, keep)
        rate = speed(model, prompt, tokens)
    return {
        "file": Path(path).name,
        "bytes": sizes.measure(path, entropy=False)["bytes"],
        "types": type_counts(path),
        "tokens_per_second": rate,
        **columns,
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
    """Quantise the 16-bit GGUF `source` to `out` and measure it as `point` does.

    ftype F16 measures the source itself. The result is kept beside `out` as JSON, and taken from
    there while source, matrix, rows and settings are the same. settings: {"tokens", "threads",
    "keep" (leave the file), "requantize", "stamp" (names source, matrix and rows)}.
    """
    record = out.with_name(f"{out.name}.json")
    settings = {**settings, "ftype": ftype, "imatrix": bool(matrix)}
    if record.exists() and (out.exists() or not settings["keep"] or ftype == "F16"):
        stored = json.loads(record.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored
    options = {"requantize": settings["requantize"], "threads": settings["threads"]}
    began = time.perf_counter()
    if ftype != "F16":
        llamacpp.quantize(source, out, ftype, matrix, **options)
    seconds = time.perf_counter() - began
    limits = {"tokens": settings["tokens"], "threads": settings["threads"]}
    row = point(source if ftype == "F16" else out, examples, keep, prompt, **limits)
    row |= {"settings": settings, "ftype": ftype, "quantise_seconds": seconds}
    if not settings["keep"] and ftype != "F16":
        out.unlink()
    atomic_write_json(record, row)
    return row


def climb(
    plans: list[tuple],
    shipped: tuple[str, str],
    folder: Path,
    examples,
    keep: Path,
    prompt: list[int],
    settings: dict,
) -> list[dict]:
    """The `rung` of every plan, each with "curve" and "ftype", in order.

    plans: (curve, 16-bit GGUF, file type, importance matrix or None). shipped: the (curve, file
    type) that stays, as shipped.gguf; the others are deleted once measured. settings: {"tokens",
    "threads", "stamp" (names the source model and the rows)}.
    """
    rows = []
    hashes = {source: sha256_file(source) for source in dict.fromkeys(plan[1] for plan in plans)}
    for curve, source, ftype, matrix in plans:
        stays = (curve, ftype) == shipped
        name = f"{curve.replace(', ', '-').replace(' ', '-')}-{ftype}"
        target = folder / ("shipped.gguf" if stays else f"{name}.gguf")
        stamp = settings["stamp"] + hashes[source]
        options = {**settings, "requantize": False, "keep": stays, "stamp": stamp}
        row = rung(source, ftype, target, matrix, examples, keep, prompt, options)
        print(f"{curve} {ftype}: {row['bytes'] / 1e6:.1f} MB", flush=True)
        rows.append({**row, "curve": curve})
    return rows


def estimated(rows: list[dict], seed: int) -> list[dict]:
    """Rows of `climb` with their `estimates` in place of the sums."""
    return [row | estimates(row, seed) for row in rows]


def estimates(row: dict, seed: int) -> dict[str, Estimate]:
    """{"perplexity", "kl" (mean nats a token), "agreement" (share of tokens)} of a `point`.

    Intervals over conversations; kl and agreement are absent for the source itself.
    """
    import numpy as np

    tokens = np.array(row["tokens"])
    clusters = np.repeat(np.arange(len(tokens)), tokens)
    result = {"perplexity": losses.perplexity(row, seed)}
    kinds = {"kl": ("kl", float("inf"), "nats"), "agreement": ("same", 1.0, "share")}
    for name, (key, most, unit) in kinds.items():
        if key in row:
            values = np.repeat(np.array(row[key]) / tokens, tokens)
            limits = {"bounds": (0.0, most), "unit": unit}
            result[name] = stats.mean_ci(values, seed, clusters=clusters, **limits)
    return result


def table(rows: list[dict]) -> list[dict]:
    """What each file keeps of the source, from `estimated` rows."""
    return [
        {
            "model": row["curve"],
            "type": row["ftype"],
            "MB": f"{row['bytes'] / 1e6:.1f}",
            "perplexity": row["perplexity"],
            "KL from source": row["kl"],
            "same token as source": row["agreement"],
        }
        for row in rows
    ]


def storage_table(rows: list[dict]) -> list[dict]:
    """How fast each file decodes, and how many tensors of which type it stores."""
    return [
        {
            "model": row["curve"],
            "type": row["ftype"],
            "tokens/s": f"{row['tokens_per_second']:.0f}",
            "stored as": ", ".join(
                f"{count} {kind}" for kind, count in row["types"].items() if kind != "F32"
            ),
        }
        for row in rows
    ]


def get(rows: list[dict], curve: str, ftype: str) -> dict | None:
    """The row of a curve and file type; None where it was not made."""
    return next((row for row in rows if (row["curve"], row["ftype"]) == (curve, ftype)), None)


def matrix_gain(rows: list[dict], ftypes: list[str]) -> dict[str, float]:
    """By how many nats the importance matrix changes the KL of each type that was made with both.

    Negative where the matrix brings the file nearer to its source.
    """
    gains = {}
    for ftype in ftypes:
        pair = [get(rows, curve, ftype) for curve in ("source", "source, no importance matrix")]
        if all(pair):
            gains[ftype] = pair[0]["kl"]["value"] - pair[1]["kl"]["value"]
    return gains


def beaten(rows: list[dict]) -> list[str]:
    """Types of the pruned model that a file of the source beats: no larger, and no farther off."""
    source = [row for row in rows if row["curve"] == "source"]
    return [
        row["ftype"]
        for row in rows
        if row["curve"] == "pruned"
        and row["ftype"] != "F16"
        and any(
            other["bytes"] <= row["bytes"] and other["kl"]["value"] <= row["kl"]["value"]
            for other in source
        )
    ]


def pruned_sentence(rows: list[dict]) -> str:
    """Whether the files of the pruned model hold their own against those of the source."""
    types = [row["ftype"] for row in rows if row["curve"] == "pruned" and row["ftype"] != "F16"]
    if not types:
        return "There is no pruned model in this run, so one curve stands alone."
    worse = beaten(rows)
    return (
        f"Of {len(types)} pruned files {len(worse)} are beaten by a file of the unpruned model that"
        f" is no larger{' (' if worse else ''}{', '.join(worse)}{')' if worse else ''}."
    )


def answer_agreement(model, reader, tokenizer, prompts: list[str], tokens: int) -> list[dict]:
    """Greedy answers of a GGUF and of transformers (`reader`, float32) to the same prompts.

    Rows: {"prompt", "same_ids" (llama.cpp's tokenizer gives the prompt's ids), "same_text",
    "theirs", "ours", "first" (place of the first different token, None when all are equal)}.
    """
    texts = [generate.render(tokenizer, generate.as_messages(prompt)) for prompt in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    generated = model.generate(ids, max_new_tokens=tokens)
    options = {"max_new_tokens": tokens, "progress": "transformers"}
    expected = generate.generate(reader, tokenizer, prompts, **options)
    rows = []
    for number, prompt in enumerate(prompts):
        [answer], [reference] = generated[number], expected[number]
        written = tokenizer.decode(answer["ids"], skip_special_tokens=True)
        reference_ids = tokenizer(reference["text"], add_special_tokens=False)["input_ids"]
        pairs = enumerate(zip(answer["ids"], reference_ids, strict=False))
        rows.append(
            {
                "prompt": prompt,
                "same_ids": model.tokenize(texts[number]) == ids[number],
                "same_text": written == reference["text"],
                "ours": written,
                "theirs": reference["text"],
                "first": next((place for place, (a, b) in pairs if a != b), None),
            }
        )
    return rows


def figure(rows: list[dict]):
    """Bytes on disk against perplexity and against KL, a curve a model; `estimated` rows."""
    fig, axes = plots.figure(2, 1, 11, 4.2)
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    for panel, key in zip(axes, ("perplexity", "kl"), strict=True):
        for curve, colour in zip(curves, plots.CYCLE, strict=False):
            shown = [row for row in rows if row["curve"] == curve and row[key]["value"] > 0]
            shown.sort(key=lambda row: row["bytes"])
            size = [row["bytes"] / 1e6 for row in shown]
            value = [row[key]["value"] for row in shown]
            panel.plot(size, value, "o-", color=colour, label=curve)
            style = {"fontsize": 7, "xytext": (3, 4), "textcoords": "offset points"}
            for row, *place in zip(shown, size, value, strict=True):
                panel.annotate(row["ftype"], place, **style)
        panel.set(xscale="log", yscale="log", xlabel="MB on disk")
        panel.legend()
    axes[0].set(ylabel="perplexity on answers", title="What the bytes buy")
    axes[1].set(ylabel="KL from the source model (nats a token)", title="How far from the source")
    return fig
