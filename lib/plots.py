"""The look of every figure, and the figures that the report draws. Functions return a figure,
unshown."""

from __future__ import annotations

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN = (
    "#2b6cb0",
    "#dd6b20",
    "#2f855a",
    "#c53030",
    "#6b46c1",
    "#8a6d3b",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, BROWN)
VERDICTS = {"pass": GREEN, "FAIL": RED, "inconclusive": ORANGE, "not measured": QUIET}
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 110, "savefig.bbox": "tight", "figure.facecolor": "white",
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def style() -> None:
    """Set the project's look for figures made from now on. `run.start` calls it."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=CYCLE)})


def figure(columns: int = 1, rows: int = 1, width: float = 7.5, height: float = 3.8, **options):
    """(figure, axes) of the project's size in inches; options go to `plt.subplots`."""
    import matplotlib.pyplot as plt

    style()
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def save(fig, path) -> None:
    """Write a PNG whose bytes depend on the picture alone, creating the folder, and close the
    figure."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Software": None})
    plt.close(fig)


def intervals(
    estimates: dict[str, dict], *, title: str = "", xlabel: str = "", line: float | None = None
):
    """One dot with its interval a row, top to bottom; `line` draws a threshold or a baseline."""
    fig, axes = figure(height=1.2 + 0.36 * len(estimates))
    for row, entry in enumerate(estimates.values()):
        low, high = entry.get("low", entry["value"]), entry.get("high", entry["value"])
        axes.plot([low, high], [row, row], color=BLUE, linewidth=2, solid_capstyle="round")
        axes.plot(entry["value"], row, "o", color=BLUE, markersize=6)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel=xlabel)
    if line is not None:
        axes.axvline(line, color=INK, linewidth=1, linestyle="--")
    return fig


def gates(judged: list[dict], title: str = "Gates: measured against threshold"):
    """Each measured gate as its distance from the threshold, scaled so that unlike units share one
    axis.

    judged: rows of `gates.judge`. The threshold is the dashed line at 0; right of it satisfies the
    gate. The scale of a row is the size of its threshold, or of its own interval where the
    threshold is 0.
    """
    from matplotlib.lines import Line2D

    rows = [gate for gate in judged if gate["measured"] is not None]
    fig, axes = figure(height=1.6 + 0.3 * max(len(rows), 1))
    for position, gate in enumerate(rows):
        points = _distances(gate)
        size = abs(gate["threshold"]) or max(abs(point) for point in points) or 1.0
        low, middle, high = (max(-1.0, min(1.0, point / size)) for point in points)
        colour = VERDICTS[gate["verdict"]]
        axes.plot(
            [low, high], [position, position], color=colour, linewidth=2.5, solid_capstyle="round"
        )
        axes.plot(middle, position, "o", color=colour, markersize=7)
    axes.axvline(0, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [gate["id"] for gate in rows])
    axes.set_xticks(
        [-1, 0, 1], ["misses by 100 %\nor more", "threshold", "clears by 100 %\nor more"]
    )
    axes.set_xlim(-1.08, 1.08)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_title(title, pad=26)
    shown = [verdict for verdict in VERDICTS if any(gate["verdict"] == verdict for gate in rows)]
    handles = [Line2D([], [], color=VERDICTS[v], marker="o", linewidth=2.5, label=v) for v in shown]
    if handles:
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(handles),
            borderaxespad=0,
        )
    return fig


def _distances(gate: dict) -> tuple[float, float, float]:
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


def training(history: list[dict], probe: list[dict], n: int):
    """Training and validation loss against the step, and the task probe beside it.

    history: log of the Trainer; probe: {step, score} from step 0 on; n: items of the probe.
    """
    fig, (left, right) = figure(2, 1, 10, 3.6)
    curves = {
        name: [(row["step"], row[name]) for row in history if name in row]
        for name in ("loss", "eval_loss")
    }
    left.plot(*zip(*curves["loss"], strict=True), color=BLUE, alpha=0.7, label="training")
    if curves["eval_loss"]:
        left.plot(*zip(*curves["eval_loss"], strict=True), "o-", color=ORANGE, label="validation")
    left.set(
        xlabel="optimiser step", ylabel="loss (nats a token)", title="Loss on assistant tokens"
    )
    left.legend()
    right.plot([row["step"] for row in probe], [row["score"] for row in probe], "o-", color=GREEN)
    right.set(
        xlabel="optimiser step", ylabel="share correct", ylim=(0, 1), title=f"Task probe, n {n}"
    )
    return fig


def losses(histories: dict[str, list[dict]]):
    """Training loss of each adapter, and beside it the loss on original rows, which shows what is
    forgotten.

    histories: {name: log of the Trainer}.
    """
    fig, (left, right) = figure(2, 1, 10, 3.6)
    for name, history in histories.items():
        for axes, key, style in ((left, "loss", "-"), (right, "eval_loss", "o-")):
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=name)
    left.set(xlabel="optimiser step", ylabel="loss (nats a token)", title="On what is learned")
    right.set(
        xlabel="optimiser step", ylabel="loss (nats a token)", title="On held-out original rows"
    )
    left.legend()
    return fig


def merge_audit(divergence: dict[str, float], norms):
    """KL of each way of merging (4-bit routes in red), and the relative size of the update by layer
    and module.

    divergence: {variant: nats}; norms: DataFrame with layer, module, relative.
    """
    fig, (left, right) = figure(2, 1, 11, 4)
    labels = list(divergence)[::-1]
    colours = [RED if "4-bit" in label else BLUE for label in labels]
    left.barh(
        labels, [max(divergence[label], 1e-9) for label in labels], color=colours
    )  # a log axis has no zero
    left.set(
        xscale="log",
        xlabel="KL from what was trained (nats a token)",
        title="What each way of merging changes",
    )
    right.set_prop_cycle(color=[BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, INK])
    for module, group in norms.groupby("module", sort=False):
        right.plot(group["layer"], group["relative"], label=module)
    right.set(xlabel="layer", ylabel="norm of update / norm of weight", title="Size of the update")
    right.legend(fontsize=7)
    return fig
