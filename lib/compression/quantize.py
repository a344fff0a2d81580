"""4-bit weights through llmcompressor: AWQ, with GPTQ and plain rounding as yardsticks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from lib import attention, models, plots
from lib.compression import measure, oneshot, sizes
from lib.estimates import NOT_MEASURED
from lib.files import atomic_write_json, content_hash, replacing_folder
from lib.training import losses, merge

SIXTEEN = "16 bits"
METHODS = ("rtn", "gptq", "awq")


def recipe(method: str, bits: int, group: int, symmetric: bool, awq_grid: int, log: Path) -> list:
    """Modifiers of one method for all linears but the output head.

    The three methods share one storage format. rtn rounds each weight to the nearest of its group's
    2**bits levels. gptq (Frantar et al. 2022) corrects the error of each column in the next ones.
    awq (Lin et al. 2023) scales salient input channels first, searched on a grid of `awq_grid`
    exponents, then rounds. Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(
            f"unknown quantisation method {method!r}; choose from {', '.join(METHODS)}"
        )
    if method == "awq" and awq_grid < 3:
        raise ValueError(
            f"awq_grid is {awq_grid}; AWQ compares at least 3 scalings, the first changing nothing"
        )
    with oneshot.quiet(log):
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        weights = QuantizationArgs(
            num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        options = {"config_groups": {"linears": scheme}, "ignore": ["lm_head"]}
        if method == "gptq":
            return [GPTQModifier(**options)]
        rounding = QuantizationModifier(**options)
        return [AWQModifier(n_grid=awq_grid), rounding] if method == "awq" else [rounding]


def quantise(
    source: str, tokenizer, sequences, method: str, settings: dict, folder: Path, log: Path
) -> None:
    """Quantise a 16-bit checkpoint and write it as compressed-tensors: packed integers and scales.

    settings: {"bits", "group", "symmetric", "awq_grid", "dtype" (of what stays unquantised and of
    the scales), "compute_dtype"}. Raises ValueError for a group size that does not divide the
    widths, another architecture or a missing tokenizer (see `models.llama_shape`).
    """
    import torch

    check_group_size(settings["group"], models.llama_shape(source))
    model, _ = models.load(source, settings["compute_dtype"], weights=settings["dtype"])
    chosen = [settings[key] for key in ("bits", "group", "symmetric", "awq_grid")]
    steps = recipe(method, *chosen, log)
    oneshot.run(model, tokenizer, [] if method == "rtn" else sequences, steps, log)
    with replacing_folder(folder) as scratch:
        model.to(getattr(torch, settings["dtype"]))
        with oneshot.quiet(log):
            model.save_pretrained(scratch, save_compressed=True)
        tokenizer.save_pretrained(scratch)


def reload(folder: str | Path, compute_dtype: str):
    """A compressed-tensors checkpoint, its integers turned back into dense weights.

    Without a 4-bit kernel (vLLM on a GPU has one) every engine multiplies these dense weights, so
    this model answers as the shipped one does and is no faster than the 16-bit one.
    """
    import torch
    import transformers

    attention.register()
    transformers.utils.logging.disable_progress_bar()
    with oneshot.quiet(Path(folder).parent / "oneshot.log"):  # three progress bars a load
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, compute_dtype),
            attn_implementation=attention.ATTENTION,
            quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
        )
    return model.to(models.device()).eval()


def check_group_size(group: int, shape: dict) -> None:
    """Raise ValueError unless `group` divides the input width of every linear.

    It names the nearest sizes that do. shape: of `models.llama_shape`; the widths are the hidden
    size, the MLP width and heads x head size.
    """
    widths = {
        "hidden size": shape["hidden"],
        "MLP width": shape["intermediate"],
        "attention output": shape["heads"] * shape["head_dim"],
    }
    bad = [f"{name} {width}" for name, width in widths.items() if group < 1 or width % group]
    if bad:
        common = math.gcd(*widths.values())
        fits = [size for size in range(1, common + 1) if common % size == 0]
        below = max((size for size in fits if size <= group), default=fits[0])
        above = min((size for size in fits if size >= group), default=None)
        near = " or ".join(str(size) for size in dict.fromkeys((below, above)) if size)
        raise ValueError(
            f"group size {group} does not divide the {', '.join(bad)}; the nearest that do: {near}"
        )


def stored_layer(folder: Path, part: str = "layers.0.mlp.down_proj") -> list[dict]:
    """What a checkpoint stores for one linear: {tensor, type, shape, bytes}."""
    from safetensors import safe_open

    rows = []
    for name, file in sorted(models.tensor_names(folder).items()):
        if part in name:
            with safe_open(file, "pt") as tensors:
                tensor = tensors.get_tensor(name)
            rows.append(
                {
                    "tensor": name,
                    "type": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "bytes": tensor.numel() * tensor.element_size(),
                }
            )
    return rows


def run(
    methods: list[str],
    source: str,
    key: str,
    tokenizer,
    sequences: list[list[int]],
    held_out: list[list[int]],
    examples,
    settings: dict,
    folder: Path,
    ask: Callable[[dict], object],
) -> list[dict]:
    """Quantise by every method, reload from disk, weigh and question; the 16-bit model comes first.

    held_out: token sequences for the comparison of distributions. settings: those of `quantise`.
    Other arguments as in `grid.run`; a killed run resumes likewise.
    Returns a row a system: {"name", "system", "bytes", "kinds", "bits_per_weight", "examples"} and,
    for the quantised, "compared" (rows of `merge.compare_logits` against the 16-bit model).
    Checkpoints stay in folder/<method>.
    """
    rows = []
    for name in [SIXTEEN, *methods]:
        system = name.replace(" ", "-")
        stamp = content_hash(key, name, str(sorted(settings.items())))
        file, checkpoint = folder / "points" / f"{system}.json", folder / system
        row = measure.stored(file, stamp)
        if row is None or (name != SIXTEEN and not checkpoint.exists()):
            if name != SIXTEEN:  # before the 16-bit model is loaded: AWQ wants the memory
                log = folder / "oneshot.log"
                quantise(source, tokenizer, sequences, name, settings, checkpoint, log)
            loaded = checkpoint if name != SIXTEEN else None
            facts = _measured(source, loaded, tokenizer, held_out, examples, settings)
            ask({"name": system, "loaded": (facts.pop("model"), tokenizer), "key": stamp})
            row = {"stamp": stamp, "name": name, "system": system, **facts}
            atomic_write_json(file, row)
        rows.append(row)
    return rows


def _measured(source: str, quantised: Path | None, tokenizer, held_out, examples, settings: dict):
    """Bytes and losses of a quantised checkpoint, or of the source, and its "model" in memory."""
    dtype = settings["compute_dtype"]
    reference, _ = models.load(source, dtype, weights=settings["dtype"])
    model = reload(quantised, dtype) if quantised else reference
    ledger = sizes.measure(quantised or source, entropy=False)
    facts = {
        "model": model,
        "bytes": ledger["bytes"],
        "bits_per_weight": ledger["bits_per_weight"],
        "kinds": {kind: part["bytes"] for kind, part in ledger["kinds"].items()},
        "examples": losses.losses(model, examples, tokenizer.pad_token_id),
    }
    if quantised:
        facts["compared"] = merge.compare_logits(reference, model, held_out)
    return facts


def estimated(rows: list[dict], scores: dict[str, dict], seed: int) -> list[dict]:
    """Rows of `run` with {"perplexity", "kl", "agreement", "score", "loss"}, Estimates.

    scores: {system: {"all": {"score", "loss"}}}, see `evaluation.scores.against`. kl, agreement and
    loss compare with the 16-bit model, so of itself they are not measured.
    """
    against = {"kl": NOT_MEASURED, "agreement": NOT_MEASURED}
    return [
        row
        | (measure.divergence(row["compared"], seed) if "compared" in row else against)
        | {
            "perplexity": losses.perplexity(row["examples"], seed),
            "score": scores[row["name"]]["all"]["score"],
            "loss": scores[row["name"]]["all"].get("loss", NOT_MEASURED),
        }
        for row in rows
    ]


def table(rows: list[dict]) -> list[dict]:
    """What each method weighs and how far it is from 16 bits, from `estimated` rows."""
    return [
        {
            "model": row["name"],
            "MB": f"{row['bytes'] / 1e6:.1f}",
            "bits a weight": f"{row['bits_per_weight']:.2f}",
            "KL (nats)": row["kl"],
            "same token": row["agreement"],
            "perplexity": row["perplexity"],
        }
        for row in rows
    ]


def kinds_table(rows: list[dict]) -> list[dict]:
    """MB by kind of tensor, a row a kind and a column a model."""
    kinds = dict.fromkeys(kind for row in rows for kind in row["kinds"])
    return [
        {"kind": kind, **{row["name"]: f"{row['kinds'].get(kind, 0) / 1e6:.1f}" for row in rows}}
        for kind in kinds
    ]


def linear_share(row: dict, sixteen: dict) -> float:
    """Bytes of the attention and MLP weights of one row over those of the 16-bit model."""
    kinds = (row["kinds"], sixteen["kinds"])
    compressed, full = (kind["mlp"] + kind["attention"] for kind in kinds)
    return compressed / full


def figure(rows: list[dict]):
    """Divergence from the 16-bit model and task score of each method; rows: of `estimated`."""
    fig, (left, right) = plots.figure(2, 1, 10, 3.4)
    quantised = [row for row in rows if row["kl"]]
    names = [row["name"] for row in quantised]
    values = [row["kl"]["value"] for row in quantised]
    low = [row["kl"]["value"] - row["kl"]["low"] for row in quantised]
    high = [row["kl"]["high"] - row["kl"]["value"] for row in quantised]
    colours = [plots.GREEN if name == "awq" else plots.BLUE for name in names]
    left.bar(names, values, yerr=[low, high], color=colours, width=0.6)
    left.set(ylabel="KL (nats a token)", title="Divergence from the 16-bit model")
    for row, colour in zip(rows, plots.CYCLE, strict=False):
        plots.dot(right, row["bytes"] / 1e6, row["score"], colour, row["name"])
    right.set(xlabel="MB on disk", ylabel="share correct", ylim=(0, 1))
    right.set_title("Task score, all categories")
    right.legend(fontsize=8)
    return fig
