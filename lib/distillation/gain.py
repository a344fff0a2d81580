"""Did it help where it was meant to, and what did it cost elsewhere? Paired by item, with the
control beside it."""

from __future__ import annotations

from pathlib import Path

from lib import stats

ELSEWHERE = "elsewhere (items of 12)"


def right(grades: dict[str, dict], ids: list[str]) -> list[float]:
    """1.0 or 0.0 for each id, in order."""
    return [float(grades[name]["correct"]) for name in ids]


def paired(after: dict, before: dict, ids: list[str], seed: int) -> dict | None:
    """{"n", "before", "after", "gain", "b", "c", "p_value"} on items that both were graded on; None
    without any.

    gain: after minus before with a paired bootstrap; b: only after is right, c: only before, p:
    exact McNemar.
    """
    ids = [name for name in ids if name in after and name in before]
    if not ids:
        return None
    a, b = right(after, ids), right(before, ids)
    return {
        "n": len(ids),
        "before": stats.proportion(int(sum(b)), len(ids)),
        "after": stats.proportion(int(sum(a)), len(ids)),
        "gain": stats.paired_difference(a, b, seed, bounds=(-1.0, 1.0), unit="share"),
        **stats.mcnemar(a, b),
    }


def answer(
    items: list[dict], path: str, dtype: str, system: str, limits: dict, folder: Path, seed: int
) -> tuple:
    """(grades, answers) of a local model, each by item id; greedy, saved as
    generations-<system>.jsonl, resumable.

    limits: holds batch_size, max_new_tokens and max_new_tokens_code, e.g. the settings of an
    earlier notebook.
    """
    from lib import models
    from lib.evaluation import answers

    sizes = {name: limits[name] for name in ("batch_size", "max_new_tokens", "max_new_tokens_code")}
    answers.generate(
        items,
        models.load(path, dtype),
        folder=folder,
        system=system,
        seed=seed,
        model_key=models.key(path, dtype),
        **sizes,
    )
    given = answers.read(folder, system)
    return answers.graded(items, given), given


def main_numbers(measured: dict[str, dict]) -> dict:
    """What the headline and the gates need, absent ones None: lift, over, noise, net, away, p,
    better (clusters)."""

    def gain(group: str, label: str):
        return measured.get(group, {}).get(label, {}).get("gain")

    better = [
        name
        for name, entry in measured.items()
        if name[0].isdigit() and entry["distilled"]["gain"]["low"] > 0
    ]
    failed, everything = "all failures", "everything set aside"
    return {
        "lift": gain(failed, "distilled"),
        "over": gain(failed, "over control"),
        "noise": gain(failed, "re-asked"),
        "control": gain(failed, "control"),
        "net": gain(everything, "distilled"),
        "net_over": gain(everything, "over control"),
        "away": gain(ELSEWHERE, "distilled"),
        "better": better,
        "after": measured.get(ELSEWHERE, {}).get("distilled", {}).get("after"),
    }


def groups_of(aside: list[dict], labels: dict[int, str]) -> dict[str, list[str]]:
    """{name: ids} of the rows set aside: each cluster of failures, all failures, all that was
    right, everything."""
    found = {
        f"{number}: {name}": [row["id"] for row in aside if row["cluster"] == number]
        for number, name in labels.items()
    }
    failed = [row["id"] for row in aside if row["cluster"] is not None]
    return found | {
        "all failures": failed,
        "was right": [row["id"] for row in aside if row["cluster"] is None],
        "everything set aside": [row["id"] for row in aside],
    }


def measure(groups: dict[str, list[str]], graded: dict[str, dict], seed: int) -> dict[str, dict]:
    """{group: {"re-asked": paired, "distilled": paired, maybe "control", "over control"}} of what
    has items.

    graded: {"first" (the answers of 17), "before" (the same model asked again), "distilled", maybe
    "control"}. "re-asked" is what asking again alone changes, which no training is needed for.
    "distilled" and "control" are held against "before"; "over control" is distilled against
    control.
    """
    found = {}
    for name, ids in groups.items():
        pairs = {
            "re-asked": ("before", "first"),
            "distilled": ("distilled", "before"),
            "control": ("control", "before"),
            "over control": ("distilled", "control"),
        }
        entry = {
            label: paired(graded[a], graded[b], ids, seed)
            for label, (a, b) in pairs.items()
            if a in graded and b in graded
        }
        if entry.get("distilled"):
            found[name] = {label: value for label, value in entry.items() if value}
    return found


def table(measured: dict[str, dict]) -> list[dict]:
    """`measure` as rows for a reader."""
    from lib.estimates import number, words

    rows = []
    for name, entry in measured.items():
        row = {
            "set aside": name,
            "n": entry["distilled"]["n"],
            "right before": number(entry["distilled"]["before"]["value"], "share"),
            "right after": number(entry["distilled"]["after"]["value"], "share"),
            "gain": words(entry["distilled"]["gain"], "share"),
            "McNemar p": f"{entry['distilled']['p_value']:.2g}",
        }
        for label in ("re-asked", "control", "over control"):
            row[f"gain, {label}"] = words(entry[label]["gain"], "share") if label in entry else "-"
        rows.append(row)
    return rows


def share_of_reference(system: dict, reference: dict, ids: list[str], seed: int) -> dict | None:
    """Accuracy of the system over that of the reference on the same items, with a paired percentile
    bootstrap.

    None where they share no item, or the reference is right on none (or a resample of it might be).
    """
    import numpy as np

    ids = [name for name in ids if name in system and name in reference]
    if not ids:
        return None
    a, b = (np.array(right(book, ids)) for book in (system, reference))
    drawn = np.random.default_rng(seed).integers(0, len(ids), (stats.RESAMPLES, len(ids)))
    below = b[drawn].mean(1)
    if not b.sum() or (below == 0).mean() > 0.025:
        return None
    ratios = a[drawn].mean(1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(a.mean() / b.mean())
    return {
        "value": value,
        "low": min(float(low), value),
        "high": max(float(high), value),
        "n": len(ids),
        "unit": "share",
        "method": f"ratio, paired bootstrap percentile over {len(ids)}",
    }


def figure(measured: dict[str, dict], title: str):
    """Gain of every group with its interval; the control beside it where there is one; 0 is no
    change."""
    from lib import plots

    fig, axes = plots.figure(width=9, height=1.4 + 0.45 * len(measured))
    drawn = [("control", plots.QUIET, 0.16), ("distilled", plots.BLUE, -0.16)]
    drawn = [one for one in drawn if any(one[0] in entry for entry in measured.values())]
    for row, entry in enumerate(measured.values()):
        for label, colour, shift in drawn:
            if label in entry:
                gain, y = entry[label]["gain"], row + (shift if len(drawn) > 1 else 0)
                axes.plot(
                    [gain["low"], gain["high"]],
                    [y, y],
                    color=colour,
                    linewidth=2,
                    solid_capstyle="round",
                )
                axes.plot(
                    gain["value"],
                    y,
                    "o",
                    color=colour,
                    markersize=6,
                    label=label if row == 0 else None,
                )
    axes.set_yticks(
        range(len(measured)),
        [f"{name} (n {entry['distilled']['n']})" for name, entry in measured.items()],
        fontsize=8,
    )
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    axes.set(title=title, xlabel="change in the share answered right, paired, with 95 % intervals")
    if len(drawn) > 1:
        axes.legend(loc="lower right", fontsize=8)
    return fig
