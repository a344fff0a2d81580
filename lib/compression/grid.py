"""The pruning grid: what a point means, how it is built, measured and chosen."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lib.compression import measure, prune, structured
from lib.files import atomic_write_json, content_hash

UNPRUNED = "unpruned"
PARTS = ("depth", "width", "heads")


def parse(text: str) -> dict:
    """A point of the grid from its name; numbers are per cent of what goes.

    "sparsegpt 65", "wanda 60/70" (attention/MLP), "magnitude 2:4"; "depth 10", "width 17", "heads
    33" and sums of them ("depth 10 + width 17"); "unpruned". Returns {"name", and "method",
    "attention", "mlp", "pattern" or "depth", "width", "heads"}, shares in [0, 1). Raises ValueError
    for anything else.
    """
    if text == UNPRUNED:
        return {"name": text}
    words = text.split()
    if words and words[0] in prune.METHODS and len(words) == 2:
        if match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", words[1]):
            share = int(match[1]) / int(match[2])
            return {
                "name": text,
                "method": words[0],
                "attention": share,
                "mlp": share,
                "pattern": words[1],
            }
        if match := re.fullmatch(r"(\d{1,2})(?:/(\d{1,2}))?", words[1]):
            attention = int(match[1]) / 100
            mlp = int(match[2]) / 100 if match[2] else attention
            return {
                "name": text,
                "method": words[0],
                "attention": attention,
                "mlp": mlp,
                "pattern": "",
            }
    parts = [
        re.fullmatch(r"(depth|width|heads) (\d{1,2})", part.strip()) for part in text.split("+")
    ]
    names = [part[1] for part in parts if part]
    if all(parts) and len(set(names)) == len(names):
        return {"name": text} | {part[1]: int(part[2]) / 100 for part in parts}
    raise ValueError(
        f"grid point {text!r} is not understood; write for example 'sparsegpt 65', 'wanda 60/70',"
        " 'magnitude 2:4', 'depth 10' or 'depth 10 + width 17' (per cent of what goes)"
    )


def slug(name: str) -> str:
    """A point's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build(
    model,
    tokenizer,
    point: dict,
    sequences: list[list[int]],
    statistics: dict,
    width_multiple: int,
    log: Path,
):
    """Prune `model` in place to a parsed point; returns the measured {"attention", "mlp", "all",
    "tables"} sparsity.

    statistics: from `structured.activation_statistics` of the unpruned model.
    """
    if "method" in point:
        settings = {key: point[key] for key in ("method", "attention", "mlp", "pattern")}
        return prune.prune(model, tokenizer, sequences, **settings, log=log)
    config, keep = model.config, list(range(model.config.num_hidden_layers))
    if "depth" in point:
        keep = structured.layers_to_keep(statistics["influence"], point["depth"])
        structured.drop_layers(model, keep)
    if "width" in point:
        width = structured.width_to_keep(config.intermediate_size, point["width"], width_multiple)
        structured.narrow_mlp(model, statistics["neurons"][keep], width)
    if "heads" in point:
        groups = structured.groups_to_keep(
            config.num_key_value_heads,
            config.num_attention_heads,
            config.hidden_size,
            point["heads"],
        )
        structured.drop_head_groups(model, statistics["heads"][keep], groups)
    return prune.sparsity(model)


def write(
    point: dict,
    source: str,
    tokenizer,
    sequences,
    statistics: dict,
    settings: dict,
    folder: Path,
    log: Path,
):
    """Build a point from the source checkpoint and write it as a plain Llama checkpoint; returns
    facts about it.

    Facts: {"zeros": sparsity by kind, "removed": share of the source's linear weights that are gone
    or zero, "bitmask_bytes": of the linears, stored with a bit mask, "linear_bytes": stored
    densely, "layers", "width", "heads", "kv_heads"}.
    """
    model = measure.open_model(source, settings["dtype"], settings["compute_dtype"])
    before = sum(module.weight.numel() for _, module in prune.linears(model))
    zeros = build(model, tokenizer, point, sequences, statistics, settings["width_multiple"], log)
    left = sum(module.weight.numel() for _, module in prune.linears(model))
    bytes_per_weight = 4 if settings["dtype"] == "float32" else 2
    config = model.config
    facts = {
        "zeros": zeros,
        "removed": 1 - (1 - zeros["all"]) * left / before,
        "bitmask_bytes": prune.bitmask_bytes(model, bytes_per_weight),
        "linear_bytes": left * bytes_per_weight,
        "layers": config.num_hidden_layers,
        "width": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
    }
    measure.save(model, tokenizer, folder, settings["dtype"])
    return facts


def run(
    names: list[str],
    source: str,
    key: str,
    tokenizer,
    sequences,
    statistics,
    examples,
    items,
    settings: dict,
    folder: Path,
) -> list[dict]:
    """Build, weigh and question every point; what a killed run has finished is not done again.

    Args: key: of the source model and its calibration, in which stored results are valid. examples:
    validation
        conversations (`conversations.dataset`). settings: {"dtype" of files, "compute_dtype",
        "width_multiple", "max_new_tokens", "batch_size", "seed"}.
    Returns for each point, in order, the facts of `write` and {"name", "system", "bytes",
    "examples" (losses)}; answers are kept as raw text in generations-<system>.jsonl, to be graded
    later.
    """
    rows = []
    for name in names:
        point, system = parse(name), slug(name)
        stamp = content_hash(key, name, str(sorted(settings.items())))
        file = folder / "points" / f"{system}.json"
        row = measure.stored(file, stamp)
        if row is None:
            checkpoint = folder / "candidate"
            facts = write(
                point,
                source,
                tokenizer,
                sequences,
                statistics,
                settings,
                checkpoint,
                folder / "oneshot.log",
            )
            found = measure.checkpoint(
                checkpoint, tokenizer, examples, items, system, stamp, settings, folder
            )
            shutil.rmtree(checkpoint)
            row = {"stamp": stamp, "name": name, "system": system, **facts, **found}
            atomic_write_json(file, row)
        rows.append(row)
    return rows


def choose(rows: list[dict], max_ratio: float) -> dict:
    """The smallest file whose perplexity is at most `max_ratio` times the unpruned one's; equal
    bytes: the better.

    rows: {"name", "bytes", "perplexity"}; the unpruned model is among them and always qualifies.
    """
    base = next(row for row in rows if row["name"] == UNPRUNED)
    fit = [row for row in rows if row["perplexity"] <= max_ratio * base["perplexity"]]
    return min(fit or [base], key=lambda row: (row["bytes"], row["perplexity"]))


def front(rows: list[dict]) -> list[dict]:
    """Rows that no other beats in bytes without losing in perplexity, from small to large."""
    best, kept = float("inf"), []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["perplexity"])):
        if row["perplexity"] < best:
            best = row["perplexity"]
            kept.append(row)
    return kept


def figure(rows: list[dict], chosen: str, max_ratio: float):
    """Bytes on disk against perplexity (log) and against the task score, points coloured by kind,
    the front as a line.

    rows: {"name", "bytes", "perplexity", "score" (estimate)}; a hollow ring marks what a bit mask
    could save.
    """
    from lib import plots

    colours = {
        "sparsegpt": plots.ORANGE,
        "wanda": plots.PURPLE,
        "magnitude": plots.RED,
        "structured": plots.BLUE,
        UNPRUNED: plots.INK,
    }
    fig, (left, right) = plots.figure(2, 1, 11, 4.4)
    seen = set()
    for row in rows:
        first = row["name"].split()[0]
        kind = first if first in colours else "structured"
        label = None if kind in seen else kind
        seen.add(kind)
        size, score = row["bytes"] / 1e6, row["score"]
        left.plot(size, row["perplexity"], "o", color=colours[kind], label=label)
        right.errorbar(
            size,
            score["value"],
            [[score["value"] - score["low"]], [score["high"] - score["value"]]],
            fmt="o",
            color=colours[kind],
            elinewidth=1,
            alpha=0.8,
        )
        if row.get("bitmask_total") and row["bitmask_total"] < row["bytes"]:
            left.plot(
                row["bitmask_total"] / 1e6,
                row["perplexity"],
                "o",
                color=colours[kind],
                fillstyle="none",
            )
        if row["name"] == chosen:
            left.plot(
                size,
                row["perplexity"],
                "o",
                color=plots.GREEN,
                fillstyle="none",
                markersize=13,
                label="chosen",
            )
            right.plot(
                size, score["value"], "o", color=plots.GREEN, fillstyle="none", markersize=13
            )
    line = front(rows)
    left.plot(
        [row["bytes"] / 1e6 for row in line],
        [row["perplexity"] for row in line],
        color=plots.QUIET,
        linewidth=1,
    )
    base = next(row for row in rows if row["name"] == UNPRUNED)
    left.axhline(max_ratio * base["perplexity"], color=plots.QUIET, linestyle="--", linewidth=1)
    left.set(
        yscale="log",
        xlabel="MB on disk",
        ylabel="perplexity (log)",
        title="Perplexity; hollow: with a bit mask",
    )
    right.set(
        xlabel="MB on disk", ylabel="share correct", ylim=(0, 1), title="Task score, all categories"
    )
    left.legend(fontsize=8)
    return fig
