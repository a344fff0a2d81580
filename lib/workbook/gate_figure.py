"""The figure of all gates: unlike units on one axis, by their distance from the threshold."""

from __future__ import annotations

from lib import plots

VERDICTS = {
    "pass": plots.GREEN,
    "FAIL": plots.RED,
    "inconclusive": plots.ORANGE,
    "not measured": plots.QUIET,
}


def draw(judged: list[dict]):
    """Each measured gate as its distance from the threshold, in multiples of that threshold.

    judged: rows of `gates.judge`. The threshold is the dashed line at 0; right of it satisfies the
    gate. Where the threshold is 0, the scale of a row is the size of its own interval.
    """
    rows = [gate for gate in judged if gate["measured"] is not None]
    fig, axes = plots.figure(height=1.6 + 0.3 * max(len(rows), 1))
    for position, gate in enumerate(rows):
        points = distances(gate)
        size = abs(gate["threshold"]) or max(abs(point) for point in points) or 1.0
        low, middle, high = (max(-1.0, min(1.0, point / size)) for point in points)
        colour = VERDICTS[gate["verdict"]]
        ends = [low, high], [position, position]
        axes.plot(*ends, color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(middle, position, "o", color=colour, markersize=7)
    axes.axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [gate["id"] for gate in rows])
    axes.set_xticks(
        [-1, 0, 1], ["misses by 100 %\nor more", "threshold", "clears by 100 %\nor more"]
    )
    axes.set_xlim(-1.08, 1.08)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_title("Gates: measured against threshold", pad=26)
    _legend(axes, {gate["verdict"] for gate in rows})
    return fig


def _legend(axes, verdicts: set[str]) -> None:
    """Above the axes, one handle for each verdict that is drawn."""
    from matplotlib.lines import Line2D

    look = {"marker": "o", "linewidth": 2.5}
    handles = [
        Line2D([], [], color=colour, label=verdict, **look)
        for verdict, colour in VERDICTS.items()
        if verdict in verdicts
    ]
    if handles:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(handles=handles, ncols=len(handles), **above)


def distances(gate: dict) -> tuple[float, float, float]:
    """How far the interval's worst end, the value and the best end lie on the satisfying side.

    For `about` and `==` the best point of an interval that holds the threshold is the threshold
    itself.
    """
    measured, threshold = gate["measured"], gate["threshold"]
    low, high = measured.get("low", measured["value"]), measured.get("high", measured["value"])
    if gate["op"] in ("about", "=="):
        off = [abs(x - threshold) for x in (low, measured["value"], high)]
        nearest = 0.0 if low <= threshold <= high else min(off)
        return tuple(gate.get("tolerance", 0.0) - x for x in (max(off), off[1], nearest))
    side = 1 if gate["op"].startswith(">") else -1
    worst, best = (low, high) if side > 0 else (high, low)
    return tuple(side * (x - threshold) for x in (worst, measured["value"], best))
