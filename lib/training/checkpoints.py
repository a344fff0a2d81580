"""Checkpoints that survive a kill: which one is whole, and which one to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lib.files import atomic_write_json


def complete(folder: Path, clean: bool = True) -> Path | None:
    """Newest checkpoint whose writing finished; `clean` deletes torn ones, left by a kill."""
    folders = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in folders if (path / "complete.json").exists()]
    if clean:
        for path in set(folders) - set(whole):
            shutil.rmtree(path)
    return whole[-1] if whole else None


def resume_from(folder: Path, fingerprint: str) -> Path | None:
    """The checkpoint to go on from; those of another fingerprint are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "fingerprint.json"
    if not stamp.exists() or json.loads(stamp.read_text())["fingerprint"] != fingerprint:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        atomic_write_json(stamp, {"fingerprint": fingerprint})
    return complete(folder)
