"""Which sources a run reads: local files or Hub data sets, each with a fingerprint and a licence.

Rows are read as streams: `read` yields `(line, row, reason)` like the file readers of
`lib.curation.readers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lib.curation.readers import MAX_BYTES, SUFFIXES, Raw, read_file
from lib.files import from_root, sha256_file

# Licences as the sources state them; used when neither the Hub card, the row nor licences.json says
# one.
LICENCES = (
    ("h2o_wizardlm", "Apache-2.0"),
    ("wizardlm_testset", "CC BY-NC 4.0"),
    ("openorca", "MIT"),
    ("alpaca", "CC BY-NC 4.0"),
    ("wizardlm", "MIT"),
    ("evol", "Apache-2.0"),
    ("dolly", "CC BY-SA 3.0"),
    ("metamath", "MIT"),
    ("hh_rlhf", "MIT"),
    ("hh-rlhf", "MIT"),
    ("gpteacher", "MIT"),
    ("oasst", "Apache-2.0"),
    ("p3_", "Apache-2.0"),
    ("self_instruct", "Apache-2.0"),
    ("sharegpt_dummy", "Apache-2.0"),
    ("llamafactory", "Apache-2.0"),
)

SIDE_FILES = ("licences.json", "injected.jsonl")  # stand beside the data and tell about it


class SourceError(ValueError):
    """A source that cannot be found, opened or understood; the message says what to do."""


def licence_of(name: str) -> str:
    """Licence of a source by its name, 'not stated' when unknown."""
    name = name.lower()
    if "codealpaca" in name or "code_alpaca" in name:
        return "CC BY-NC 4.0"
    return next((licence for part, licence in LICENCES if part in name), "not stated")


def stem(path: Path) -> str:
    """File name without .gz and without the format suffix: 'alpaca.jsonl.gz' -> 'alpaca'."""
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)


def find(names: list[str], data: str | Path) -> list[dict]:
    """The sources of a run in priority order: name, kind, path, revision, fingerprint, licence.

    kind: "file" or "hub". names: Hub names (`owner/name` or `owner/name@revision`) or files; empty
    takes every data file of `data` (of its `instruct/` folder when there is one), by name.
    Raises SourceError naming what is missing and what exists, and for two sources of one name.
    """
    chosen = [_named(name, data) for name in names] if names else _all_of(data)
    seen: set[str] = set()
    for source in chosen:
        if source["name"] in seen:
            raise SourceError(
                f"two sources are called {source['name']}; rename one file, or name a source once"
            )
        seen.add(source["name"])
    return chosen


def _all_of(data: str | Path) -> list[dict]:
    folder = from_root(data)
    if not folder.is_dir():
        parent = folder.parent
        near = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        raise SourceError(
            f"data folder {data} does not exist; beside it: {', '.join(near) or 'none'}"
        )
    inner = folder / "instruct" if (folder / "instruct").is_dir() else folder
    files = [
        p
        for p in sorted(inner.iterdir())
        if p.name.removesuffix(".gz").endswith(SUFFIXES)
        and p.name not in SIDE_FILES
        and not p.name.startswith(".")
    ]
    if not files:
        raise SourceError(
            f"{inner} has no data file; wanted: {', '.join(SUFFIXES)}, each optionally .gz"
        )
    return [_file(path) for path in files]


def _named(name: str, data: str | Path) -> dict:
    folder = from_root(data)
    for path in (Path(name), from_root(name), folder / name, folder / "instruct" / name):
        if path.is_file():
            return _file(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) and not name.removesuffix(".gz").endswith(
        SUFFIXES
    ):
        repo, _, wanted = name.partition("@")
        commit, licence = hub_revision(repo, wanted)
        return {
            "name": repo,
            "kind": "hub",
            "path": repo,
            "revision": commit,
            "fingerprint": commit,
            "licence": licence or licence_of(repo),
        }
    known = []
    for place in (folder, folder / "instruct"):
        if place.is_dir():
            known += sorted(
                p.name for p in place.iterdir() if p.name.removesuffix(".gz").endswith(SUFFIXES)
            )
    raise SourceError(
        f"source {name!r} is neither a file nor a Hub name owner/name; files in {data}: "
        f"{', '.join(known) or 'none'}"
    )


def _file(path: Path) -> dict:
    table = path.parent / "licences.json"
    stated = (
        json.loads(table.read_text(encoding="utf-8")).get(path.name) if table.is_file() else None
    )
    digest = sha256_file(path)
    return {
        "name": stem(path),
        "kind": "file",
        "path": str(path),
        "revision": digest[:12],
        "fingerprint": digest,
        "licence": stated or licence_of(path.name),
    }


def hub_revision(repo: str, wanted: str = "") -> tuple[str, str]:
    """(commit, licence) of a Hub data set, newest or at `wanted`. SourceError when unreachable."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repo, revision=wanted or None)
    except Exception as error:
        # the Hub client raises a dozen kinds (offline, gated, missing, bad revision)
        raise SourceError(
            f"Hub data set {repo}{'@' + wanted if wanted else ''} cannot be reached"
            f" ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); check the name and"
            " the network, log in if it is gated, or name local files instead"
        ) from error
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return info.sha, ", ".join(licence) if isinstance(licence, list) else licence or ""


def read(source: dict, max_bytes: int = MAX_BYTES, limit: int = 0) -> Iterator[Raw]:
    """Rows of one source of `find`, the first `limit` of them (0 takes all)."""
    rows = read_hub(source) if source["kind"] == "hub" else read_file(source["path"], max_bytes)
    for count, item in enumerate(rows):
        if limit and count >= limit:
            return
        yield item


def read_hub(source: dict) -> Iterator[Raw]:
    """Stream the train split of a Hub data set at its commit; nothing is downloaded whole."""
    import datasets

    stream = datasets.load_dataset(
        source["path"], split="train", streaming=True, revision=source["revision"]
    )
    for number, row in enumerate(stream, 1):
        yield number, dict(row), None
