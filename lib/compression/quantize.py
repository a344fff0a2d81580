"""4-bit weights through llmcompressor: AWQ, with GPTQ and plain rounding as yardsticks, as
compressed-tensors files."""

from __future__ import annotations

import shutil
from pathlib import Path

from lib.compression import measure
from lib.files import atomic_write_json, content_hash

SIXTEEN = "16 bits"
METHODS = ("rtn", "gptq", "awq")


def recipe(method: str, bits: int, group: int, symmetric: bool, awq_grid: int, log: Path) -> list:
    """Modifiers of one method for all linears but the output head; the three share one storage
    format.

    rtn rounds each weight to the nearest of its group's 2**bits levels. gptq (Frantar et al. 2022)
    corrects the error of each column in the next ones. awq (Lin et al. 2023) scales salient input
    channels first, searched on a grid of `awq_grid` exponents, then rounds. Raises ValueError for
    another method.
    """
    from lib.compression.oneshot import quiet

    if method not in METHODS:
        raise ValueError(
            f"unknown quantisation method {method!r}; choose from {', '.join(METHODS)}"
        )
    if method == "awq" and awq_grid < 3:
        raise ValueError(
            f"awq_grid is {awq_grid}; AWQ compares at least 3 scalings, the first changing nothing"
        )
    with quiet(log):
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        weights = QuantizationArgs(
            num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group
        )
        how = {
            "config_groups": {"linears": QuantizationScheme(targets=["Linear"], weights=weights)},
            "ignore": ["lm_head"],
        }
        if method == "gptq":
            return [GPTQModifier(**how)]
        return [
            *([AWQModifier(n_grid=awq_grid)] if method == "awq" else []),
            QuantizationModifier(**how),
        ]


def quantise(
    source: str, tokenizer, sequences, method: str, settings: dict, folder: Path, log: Path
) -> None:
    """Quantise a 16-bit checkpoint and write it in the compressed-tensors format (packed integers
    and their scales).

    settings: {"bits", "group", "symmetric", "awq_grid", "dtype" (of what stays unquantised and of
    the scales), "compute_dtype"}. Raises ValueError for a group size that does not divide the
    widths, another architecture or a missing tokenizer (see `source.require_llama`).
    """
    import torch

    from lib.compression import oneshot
    from lib.compression.source import check_group_size, require_llama

    check_group_size(settings["group"], require_llama(source))
    model = measure.open_model(source, settings["dtype"], settings["compute_dtype"])
    steps = recipe(
        method,
        settings["bits"],
        settings["group"],
        settings["symmetric"],
        settings["awq_grid"],
        log,
    )
    oneshot.run(model, tokenizer, [] if method == "rtn" else sequences, steps, log)
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    with oneshot.quiet(log):
        model.to(getattr(torch, settings["dtype"])).save_pretrained(scratch, save_compressed=True)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def reload(folder: Path, compute_dtype: str):
    """A compressed-tensors checkpoint as transformers reads it, its integers turned back into dense
    weights.

    Without a 4-bit kernel (vLLM on a GPU has one) every engine multiplies these dense weights, so
    this model answers as the shipped one does and is no faster than the 16-bit one.
    """
    import torch
    import transformers

    from lib import attention, models
    from lib.compression.oneshot import quiet

    attention.register()
    transformers.utils.logging.disable_progress_bar()
    with quiet(folder.parent / "oneshot.log"):  # three progress bars a load
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, compute_dtype),
            attn_implementation=attention.ATTENTION,
            quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
        )
    return model.to(models.device()).eval()


def stored_layer(folder: Path, part: str = "layers.0.mlp.down_proj") -> list[dict]:
    """What a checkpoint stores for one linear: {tensor, type, shape, bytes}."""
    from safetensors import safe_open

    from lib.compression.source import tensor_names

    rows = []
    for name, file in sorted(tensor_names(folder).items()):
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
    sequences,
    held_out,
    examples,
    items,
    settings: dict,
    folder: Path,
) -> list[dict]:
    """Quantise by every method, reload from disk, weigh and question; the 16-bit model comes first.

    Args: held_out: token sequences for the comparison of distributions. settings: those of
    `quantise` and
        {"max_new_tokens", "batch_size", "seed"}. Other arguments as in `grid.run`; a killed run
        resumes likewise.
    Returns a row a system: {"name", "system", "bytes", "kinds", "bits_per_weight", "examples"} and,
    for the quantised,
        "compared" (rows of `merge.compare_logits` against the 16-bit model). Checkpoints stay in
        folder/<method>.
    """
    from lib.compression import sizes
    from lib.training import merge

    rows = []
    for name in [SIXTEEN, *methods]:
        system = name.replace(" ", "-")
        stamp = content_hash(key, name, str(sorted(settings.items())))
        file, checkpoint = folder / "points" / f"{system}.json", folder / system
        row = measure.stored(file, stamp)
        if row is None or (name != SIXTEEN and not checkpoint.exists()):
            if (
                name != SIXTEEN
            ):  # before the 16-bit model is loaded again: AWQ wants the memory for its caches
                quantise(
                    source, tokenizer, sequences, name, settings, checkpoint, folder / "oneshot.log"
                )
            reference = measure.open_model(source, settings["dtype"], settings["compute_dtype"])
            model = reference if name == SIXTEEN else reload(checkpoint, settings["compute_dtype"])
            ledger = sizes.measure(source if name == SIXTEEN else checkpoint, entropy=False)
            row = {
                "stamp": stamp,
                "name": name,
                "system": system,
                "bytes": ledger["bytes"],
                "bits_per_weight": ledger["bits_per_weight"],
                "kinds": {kind: part["bytes"] for kind, part in ledger["kinds"].items()},
                "examples": measure.losses(model, examples, tokenizer.pad_token_id),
            }
            if name != SIXTEEN:
                row["compared"] = merge.compare_logits(reference, model, held_out)
            measure.answer(model, tokenizer, items, system, stamp, settings, folder)
            atomic_write_json(file, row)
            del model, reference
        rows.append(row)
    return rows


def figure(rows: list[dict]):
    """Divergence from the 16-bit model and task score of each method, with intervals.

    rows: {"name", "bytes", "kl" (estimate, absent for 16 bits), "score" (estimate)}.
    """
    from lib import plots

    fig, (left, right) = plots.figure(2, 1, 10, 3.4)
    quantised = [row for row in rows if "kl" in row]
    colours = [plots.GREEN if row["name"] == "awq" else plots.BLUE for row in quantised]
    low = [row["kl"]["value"] - row["kl"]["low"] for row in quantised]
    high = [row["kl"]["high"] - row["kl"]["value"] for row in quantised]
    left.bar(
        [row["name"] for row in quantised],
        [row["kl"]["value"] for row in quantised],
        yerr=[low, high],
        color=colours,
        width=0.6,
    )
    left.set(ylabel="KL (nats a token)", title="Divergence from the 16-bit model")
    for row in rows:
        score = row["score"]
        right.errorbar(
            row["bytes"] / 1e6,
            score["value"],
            [[score["value"] - score["low"]], [score["high"] - score["value"]]],
            fmt="o",
            label=row["name"],
        )
    right.set(
        xlabel="MB on disk", ylabel="share correct", ylim=(0, 1), title="Task score, all categories"
    )
    right.legend(fontsize=8)
    return fig
