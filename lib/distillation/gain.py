"""Did it help where it was meant to, and what did it cost elsewhere? Paired, beside a control."""

from __future__ import annotations

from lib import plots, stats
from lib.estimates import NOT_MEASURED, Estimate, number

ELSEWHERE = "elsewhere (items of 12)"
PAIRS = {  # what is compared: (after, before)
    "re-asked": ("before", "first"),
    "distilled": ("distilled", "before"),
    "control": ("control", "before"),
    "over control": ("distilled", "control"),
}


def right(grades: dict[str, dict], ids: list[str]) -> list[float]:
    """1.0 or 0.0 for each id, in order."""
    return [float(grades[name]["correct"]) for name in ids]


def paired(after: dict, before: dict, ids: list[str], seed: int) -> dict | None:
    """{"n", "before", "after", "gain", "b", "c", "p_value"} on items that both were graded on.

    gain: after minus before with a paired bootstrap; b: only after is right, c: only before, p:
    exact McNemar. None without such items.
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


def _gain(measured: dict, group: str, label: str) -> Estimate:
    return measured.get(group, {}).get(label, {}).get("gain", NOT_MEASURED)


def main_numbers(measured: dict[str, dict]) -> dict:
    """The numbers of the answer and the gates by their metric's name; NOT_MEASURED where absent.

    Changes of the share answered right: on failures set aside held_out_gain, reasked_gain,
    control_gain, gain_over_control; on everything set aside net_gain, net_gain_over_control; on the
    items of 12 elsewhere_change, and elsewhere_after, the share itself.
    """
    failed, everything = "all failures", "everything set aside"
    return {
        "held_out_gain": _gain(measured, failed, "distilled"),
        "gain_over_control": _gain(measured, failed, "over control"),
        "reasked_gain": _gain(measured, failed, "re-asked"),
        "control_gain": _gain(measured, failed, "control"),
        "net_gain": _gain(measured, everything, "distilled"),
        "net_gain_over_control": _gain(measured, everything, "over control"),
        "elsewhere_change": _gain(measured, ELSEWHERE, "distilled"),
        "elsewhere_after": measured.get(ELSEWHERE, {})
        .get("distilled", {})
        .get("after", NOT_MEASURED),
    }


def clusters_gained(measured: dict[str, dict]) -> list[str]:
    """Names of the clusters whose gain lies above 0 with its whole interval."""
    return [
        name
        for name, entry in measured.items()
        if name[0].isdigit() and entry["distilled"]["gain"]["low"] > 0
    ]


def direction(change: Estimate) -> str:
    """Whether a change is a gain, a loss, or no clear change because its interval holds 0."""
    if not change:
        return "not measured"
    if change["low"] > 0:
        return "a gain"
    return "a loss" if change["high"] < 0 else "no clear change, as the interval holds 0"


def answer(examples: int, main: dict) -> str:
    """The answer to 18's question in one sentence. main: `main_numbers`."""
    lift, away = main["held_out_gain"], main["elsewhere_change"]
    helps = {"a gain": "Yes", "a loss": "No"}.get(direction(lift), "Not shown")
    by = f"it changes by {number(away['value'], 'share')}, " if away else "it is "
    return (
        f"{helps}: after {examples:,} targeted examples the share right on failures set aside"
        f" changes by {lift}; elsewhere {by}{direction(away)}."
    )


def groups_of(aside: list[dict], labels: dict[int, str]) -> dict[str, list[str]]:
    """{name: ids} of the rows set aside: each cluster, all failures, what was right, everything."""
    groups = {
        f"{number}: {name}": [row["id"] for row in aside if row["cluster"] == number]
        for number, name in labels.items()
    }
    failed = [row["id"] for row in aside if row["cluster"] is not None]
    return groups | {
        "all failures": failed,
        "was right": [row["id"] for row in aside if row["cluster"] is None],
        "everything set aside": [row["id"] for row in aside],
    }


def measure(groups: dict[str, list[str]], graded: dict[str, dict], seed: int) -> dict[str, dict]:
    """{group: {"re-asked", "distilled", maybe "control", "over control"}} as `paired` gives them.

    Groups without items are left out.
    graded: {"first" (the answers of 17), "before" (the same model asked again), "distilled", maybe
    "control"}. "re-asked" is what asking again alone changes, which no training is needed for.
    "distilled" and "control" are held against "before"; "over control" is distilled against
    control.
    """
    measured = {}
    for name, ids in groups.items():
        entry = {
            label: paired(graded[after], graded[before], ids, seed)
            for label, (after, before) in PAIRS.items()
            if after in graded and before in graded
        }
        if entry.get("distilled"):
            measured[name] = {label: value for label, value in entry.items() if value}
    return measured


def table(measured: dict[str, dict]) -> list[dict]:
    """`measure` as rows for a reader: right before and after, the gain, McNemar's p."""
    return [
        {
            "set aside": name,
            "n": entry["distilled"]["n"],
            "right before": number(entry["distilled"]["before"]["value"], "share"),
            "right after": number(entry["distilled"]["after"]["value"], "share"),
            "gain": entry["distilled"]["gain"],
            "McNemar p": f"{entry['distilled']['p_value']:.2g}",
        }
        for name, entry in measured.items()
    ]


def yardsticks(measured: dict[str, dict]) -> list[dict]:
    """What else changes each group: asking again, practice alone, and the gain over the latter."""
    return [
        {
            "set aside": name,
            "re-asked": _gain(measured, name, "re-asked"),
            "control": _gain(measured, name, "control"),
            "over control": _gain(measured, name, "over control"),
        }
        for name in measured
    ]


def share_of_reference(system: dict, reference: dict, ids: list[str], seed: int) -> Estimate:
    """Accuracy of the system over the reference's on the same items, paired percentile bootstrap.

    NOT_MEASURED where they share no item, or the reference is right on none (or a resample of it
    might be).
    """
    import numpy as np

    ids = [name for name in ids if name in system and name in reference]
    if not ids:
        return NOT_MEASURED
    a, b = (np.array(right(book, ids)) for book in (system, reference))
    drawn = np.random.default_rng(seed).integers(0, len(ids), (stats.RESAMPLES, len(ids)))
    below = b[drawn].mean(1)
    if not b.sum() or (below == 0).mean() > 0.025:
        return NOT_MEASURED
    ratios = a[drawn].mean(1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(a.mean() / b.mean())
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(ids),
        unit="share",
        method=f"ratio, paired bootstrap percentile over {len(ids)}",
    )


def figure(measured: dict[str, dict], title: str):
    """Gain of every group with its interval, beside the control's; the line at 0 is no change."""
    fig, axes = plots.figure(width=9, height=1.4 + 0.45 * len(measured))
    series = [("control", plots.QUIET, 0.16), ("distilled", plots.BLUE, -0.16)]
    series = [one for one in series if any(one[0] in entry for entry in measured.values())]
    for row, entry in enumerate(measured.values()):
        for label, colour, shift in series:
            if label not in entry:
                continue
            gain, y = entry[label]["gain"], row + (shift if len(series) > 1 else 0)
            ends = [gain["low"], gain["high"]]
            axes.plot(ends, [y, y], color=colour, linewidth=2, solid_capstyle="round")
            legend = label if row == 0 else None
            axes.plot(gain["value"], y, "o", color=colour, markersize=6, label=legend)
    names = [f"{name} (n {entry['distilled']['n']})" for name, entry in measured.items()]
    axes.set_yticks(range(len(measured)), names, fontsize=8)
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    axes.set(title=title, xlabel="change in the share answered right, paired, with 95 % intervals")
    if len(series) > 1:
        axes.legend(loc="lower right", fontsize=8)
    return fig
