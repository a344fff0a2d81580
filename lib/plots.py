"""The look of every figure, and the ones that several rooms draw, returned unshown."""

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
    """Write a PNG whose bytes depend on the picture alone, make its folder, close the figure."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Software": None})
    plt.close(fig)


def dot(axes, x: float, estimate: dict, colour: str | None = None, label: str | None = None):
    """A dot with its interval as an error bar, at `x`."""
    value = estimate["value"]
    bars = [[value - estimate["low"]], [estimate["high"] - value]]
    style = {"fmt": "o", "color": colour, "elinewidth": 1, "alpha": 0.8, "label": label}
    axes.errorbar(x, value, bars, **style)


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
