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
