"""Figures of training and merging. Functions return a figure, unshown."""

from __future__ import annotations

from lib import plots


def training(history: list[dict], probe: list[dict], n: int):
    """Training and validation loss against the step, and the task probe beside it.

    history: log of the Trainer; probe: {step, score} from step 0 on; n: items of the probe.
    """
    fig, (left, right) = plots.figure(2, 1, 10, 3.6)
    curves = {
        name: [(row["step"], row[name]) for row in history if name in row]
        for name in ("loss", "eval_loss")
    }
    left.plot(*zip(*curves["loss"], strict=True), color=plots.BLUE, alpha=0.7, label="training")
    if curves["eval_loss"]:
        left.plot(
            *zip(*curves["eval_loss"], strict=True), "o-", color=plots.ORANGE, label="validation"
        )
    left.set(
        xlabel="optimiser step", ylabel="loss (nats a token)", title="Loss on assistant tokens"
    )
    left.legend()
    right.plot(
        [row["step"] for row in probe], [row["score"] for row in probe], "o-", color=plots.GREEN
    )
    right.set(
        xlabel="optimiser step", ylabel="share correct", ylim=(0, 1), title=f"Task probe, n {n}"
    )
    return fig


def losses(histories: dict[str, list[dict]]):
    """Training loss of each adapter, and beside it the loss on original rows: what is forgotten.

    histories: {name: log of the Trainer}.
    """
    fig, (left, right) = plots.figure(2, 1, 10, 3.6)
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
    """KL of each way of merging (4-bit routes in red), and the relative size of the update.

    divergence: {variant: nats}; norms: DataFrame with layer, module, relative (rows of
    `merge.delta_norms`).
    """
    fig, (left, right) = plots.figure(2, 1, 11, 4)
    labels = list(divergence)[::-1]
    colours = [plots.RED if "4-bit" in label else plots.BLUE for label in labels]
    left.barh(
        labels, [max(divergence[label], 1e-9) for label in labels], color=colours
    )  # a log axis has no zero
    left.set(
        xscale="log",
        xlabel="KL from what was trained (nats a token)",
        title="What each way of merging changes",
    )
    right.set_prop_cycle(color=[*plots.CYCLE, plots.INK])
    for module, group in norms.groupby("module", sort=False):
        right.plot(group["layer"], group["relative"], label=module)
    right.set(xlabel="layer", ylabel="norm of update / norm of weight", title="Size of the update")
    right.legend(fontsize=7)
    return fig
