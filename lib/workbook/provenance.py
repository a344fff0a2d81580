"""Where a number comes from: commit, device, versions of libraries, without importing them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from lib.files import ROOT

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "llmcompressor",
    "datasets",
    "datasketch",
    "math-verify",
    "openai",
    "numpy",
)


def _output(*command: str, cwd: Path | None = None) -> str | None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(root: Path = ROOT) -> str:
    """12 digits of the commit, then " modified" if code differs from it; "no git" outside git.

    What lies under outputs/ is no code.
    """
    head = _output("git", "rev-parse", "--short=12", "HEAD", cwd=root)
    if not head:
        return "no git"
    changed = _output("git", "status", "--porcelain", "--", ".", ":(exclude)outputs", cwd=root)
    return f"{head} modified" if changed else head


def device() -> dict:
    """Processor, usable cores, memory in GiB, GPUs where nvidia-smi lists some, `fast_dtype`.

    fast_dtype is bfloat16 where the device multiplies it natively. Elsewhere a matrix product in
    bfloat16 is emulated: on a processor with AVX2 alone it took eight times as long as in float32.
    """
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.split(":", 1)[1] for line in lines if "model name" in line]
        processor = names[0].strip() if names else processor
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    result = {"cpu": processor, "cores": cores, "fast_dtype": "float32"}
    if information.exists() and re.search(
        r"\b(avx512_bf16|amx_bf16|bf16)\b", information.read_text()
    ):
        result["fast_dtype"] = "bfloat16"
    if "SC_PHYS_PAGES" in os.sysconf_names:
        result["memory_gib"] = round(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1
        )
    if shutil.which("nvidia-smi"):
        listed = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
        if listed:
            result["gpu"] = listed.splitlines()
            capability = (
                _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") or "0"
            )
            native = min(map(float, capability.split())) >= 8.0  # Ampere and newer
            result["fast_dtype"] = "bfloat16" if native else "float32"
    return result


def text(origin: dict) -> str:
    """Commit, device and versions as Markdown."""
    device = origin["device"]
    gpu = ", ".join(device.get("gpu", ["no GPU"]))
    machine = (
        f"{device['cpu']}, {device['cores']} cores, {device.get('memory_gib', '?')} GiB, {gpu}"
    )
    libraries = ", ".join(f"{library} {version}" for library, version in origin["versions"].items())
    commit = f"**Commit** {origin['commit']}"
    return f"{commit}  \n**Device** {machine}  \n**Versions** {libraries}"


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide results, and of Python."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
