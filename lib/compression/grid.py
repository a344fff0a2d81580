"""The pruning grid: what a point means, how it is built, measured and chosen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from lib import models, plots
from lib.compression import measure, prune, structured
from lib.estimates import NOT_MEASURED
from lib.files import atomic_write_json, content_hash
from lib.training import losses

UNPRUNED = "unpruned"


def names(sparse: dict[str, list[str]], shapes: list[str]) -> list[str]:
    """All points of a grid: the unpruned model, then `sparse` {method: amounts}, then `shapes`.

    Raises ValueError, before anything runs, for a point that `parse` does not understand.
    """
    zeroed = [f"{method} {amount}" for method, amounts in sparse.items() for amount in amounts]
    points = [UNPRUNED, *zeroed, *shapes]
    for point in points:
        parse(point)
    return points


def parse(text: str) -> dict:
    """A point of the grid from its name; numbers are per cent of what goes.

    "sparsegpt 65", "wanda 60/70" (attention/MLP), "magnitude 2:4"; "depth 10", "width 17", "heads
    33" and sums of them ("depth 10 + width 17"); "unpruned". Returns {"name", and "method",
    "attention", "mlp", "pattern" or "depth", "width", "heads"}, shares in [0, 1). Raises ValueError
    for anything else.
    """
    if text == UNPRUNED:
        return {"name": text}
    method, *amount = text.split() or [""]
    shares = _sparse_shares(amount[0]) if len(amount) == 1 else None
    if method in prune.METHODS and shares:
        return {"name": text, "method": method, **shares}
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


def _sparse_shares(amount: str) -> dict | None:
    """{"attention", "mlp", "pattern"} of "65", "60/70" or "2:4"; None for anything else."""
    if match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", amount):
        share = int(match[1]) / int(match[2])
        return {"attention": share, "mlp": share, "pattern": amount}
    if match := re.fullmatch(r"(\d{1,2})(?:/(\d{1,2}))?", amount):
        attention = int(match[1]) / 100
        mlp = int(match[2]) / 100 if match[2] else attention
        return {"attention": attention, "mlp": mlp, "pattern": ""}
    return None


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
    """Prune `model` in place to a parsed point; returns the sparsity that `prune.sparsity` counts.

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
    sequences: list[list[int]],
    statistics: dict,
    settings: dict,
    folder: Path,
    log: Path,
) -> dict:
    """Build a point from the source checkpoint, write it as a plain Llama, return facts about it.

    settings: {"dtype" of the file, "compute_dtype", "width_multiple"}.
    Facts: {"zeros": sparsity by kind, "removed": share of the source's linear weights that are gone
    or zero, "bitmask_bytes": of the linears, stored with a bit mask, "linear_bytes": stored
    densely, "layers", "width", "heads", "kv_heads"}.
    """
    model, _ = models.load(source, settings["compute_dtype"], weights=settings["dtype"])
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
    sequences: list[list[int]],
    statistics: dict,
    examples,
    settings: dict,
    folder: Path,
    ask: Callable[[dict], object],
) -> list[dict]:
    """Build, weigh and question every point; what a killed run has finished is not done again.

    key: of the source model, its calibration and its questions; stored results are valid under it.
    examples: validation conversations (`conversations.dataset`). settings: those of `write`, and
    what else should make stored results invalid. ask: see `measure.checkpoint`; answers are kept as
    raw text, to be graded later.
    Returns for each point, in order, the facts of `write` and {"name", "system", "bytes",
    "examples" (losses)}.
    """
    rows = []
    for name in names:
        system = slug(name)
        stamp = content_hash(key, name, str(sorted(settings.items())))
        file, candidate = folder / "points" / f"{system}.json", folder / "candidate"
        row = measure.stored(file, stamp)
        if row is None:
            built = (parse(name), source, tokenizer, sequences, statistics, settings, candidate)
            facts = write(*built, folder / "oneshot.log")
            asked = measure.checkpoint(candidate, tokenizer, examples, system, stamp, settings, ask)
            shutil.rmtree(candidate)
            row = {"stamp": stamp, "name": name, "system": system, **facts, **asked}
            atomic_write_json(file, row)
        rows.append(row)
    return rows


def estimated(rows: list[dict], scores: dict[str, dict], seed: int) -> list[dict]:
    """Rows of `run` with what is judged: {"perplexity", "next_token", "score", "loss"}, Estimates.

    Also "bitmask_total": bytes of the file if its linears were stored with a bit mask. scores:
    {point: {"all": {"score", "loss"}}}, see `evaluation.scores.against`; the loss of the unpruned
    model is not measured.
    """
    return [
        row
        | {
            "perplexity": losses.perplexity(row["examples"], seed),
            "next_token": losses.next_token(row["examples"], seed),
            "score": scores[row["name"]]["all"]["score"],
            "loss": scores[row["name"]]["all"].get("loss", NOT_MEASURED),
            "bitmask_total": row["bytes"] - row["linear_bytes"] + row["bitmask_bytes"],
        }
        for row in rows
    ]


def table(rows: list[dict]) -> list[dict]:
    """What each point weighs and how well it reads, from `estimated` rows."""
    return [
        {
            "point": row["name"],
            "MB": f"{row['bytes'] / 1e6:.1f}",
            "MB with a bit mask": (
                f"{row['bitmask_total'] / 1e6:.1f}" if row["bitmask_total"] < row["bytes"] else "-"
            ),
            "gone or zero": f"{row['removed']:.1%}",
            "perplexity": row["perplexity"],
            "next token": row["next_token"],
        }
        for row in rows
    ]


def sparse(rows: list[dict]) -> list[dict]:
    """Rows of the points that put zeros into the linears and leave the shapes."""
    return [row for row in rows if row["name"].split()[0] in prune.METHODS]


def best_at(rows: list[dict], removed: float) -> dict | None:
    """The row with the lowest perplexity within 2 points of a share of weights gone or zero."""
    near = [row for row in rows if abs(row["removed"] - removed) < 0.02]
    return min(near, key=lambda row: row["perplexity"]["value"], default=None)


def choose(rows: list[dict], max_ratio: float) -> dict:
    """The smallest file whose perplexity is at most `max_ratio` times the unpruned one's.

    Of equal bytes the better. rows: {"name", "bytes", "perplexity" (Estimate)}; the unpruned model
    is among them and always qualifies.
    """
    limit = max_ratio * unpruned(rows)["perplexity"]["value"]
    fitting = [row for row in rows if row["perplexity"]["value"] <= limit]
    return min(fitting or [unpruned(rows)], key=_size_then_perplexity)


def unpruned(rows: list[dict]) -> dict:
    """The yardstick's row."""
    return next(row for row in rows if row["name"] == UNPRUNED)


def front(rows: list[dict]) -> list[dict]:
    """Rows that no other beats in bytes without losing in perplexity, from small to large."""
    best, kept = float("inf"), []
    for row in sorted(rows, key=_size_then_perplexity):
        if row["perplexity"]["value"] < best:
            best = row["perplexity"]["value"]
            kept.append(row)
    return kept


def _size_then_perplexity(row: dict) -> tuple[float, float]:
    return row["bytes"], row["perplexity"]["value"]


def figure(rows: list[dict], chosen: str, max_ratio: float):
    """Bytes on disk against perplexity (log, with the front) and against the task score.

    rows: of `estimated`; a hollow dot is what a bit mask could save, a ring is the chosen point.
    """
    colours = {
        "sparsegpt": plots.ORANGE,
        "wanda": plots.PURPLE,
        "magnitude": plots.RED,
        "structured": plots.BLUE,
        UNPRUNED: plots.INK,
    }
    fig, (left, right) = plots.figure(2, 1, 11, 4.4)
    labelled = set()
    for row in rows:
        first = row["name"].split()[0]
        kind = first if first in colours else "structured"
        size, value = row["bytes"] / 1e6, row["perplexity"]["value"]
        label = None if kind in labelled else kind
        labelled.add(kind)
        left.plot(size, value, "o", color=colours[kind], label=label)
        plots.dot(right, size, row["score"], colours[kind])
        if row["bitmask_total"] < row["bytes"]:
            hollow = {"color": colours[kind], "fillstyle": "none"}
            left.plot(row["bitmask_total"] / 1e6, value, "o", **hollow)
        if row["name"] == chosen:
            ring = {"color": plots.GREEN, "fillstyle": "none", "markersize": 13}
            left.plot(size, value, "o", label="chosen", **ring)
            right.plot(size, row["score"]["value"], "o", **ring)
    edge = [(row["bytes"] / 1e6, row["perplexity"]["value"]) for row in front(rows)]
    left.plot(*zip(*edge, strict=True), color=plots.QUIET, linewidth=1)
    limit = max_ratio * unpruned(rows)["perplexity"]["value"]
    left.axhline(limit, color=plots.QUIET, linestyle="--", linewidth=1)
    left.set(yscale="log", xlabel="MB on disk", ylabel="perplexity (log)")
    left.set_title("Perplexity; hollow: with a bit mask")
    left.legend(fontsize=8)
    right.set(xlabel="MB on disk", ylabel="share correct", ylim=(0, 1))
    right.set_title("Task score, all categories")
    return fig
