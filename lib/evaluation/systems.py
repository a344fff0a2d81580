"""One way to ask any system: the same items, prompts and limits, and one cache, whatever answers.

A system is a plain dict. Its `name` names the file of its answers; what else it holds says how it
is asked:

    {"path": checkpoint, "adapter": folder, "revision": str}    transformers; the adapter unmerged
    {"path": "x.gguf", "tokenizer": folder, "adapter": "a.gguf" or [...], "scales": [1.0]}
                                                                llama.cpp
    {"client": endpoints.client.Client}                         an endpoint
    {"loaded": (model, tokenizer), "key": str}                  a model that is already in memory

`run.Job.model` gives the first two as an earlier step handed them over. `opened` loads once what
is asked several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib import models
from lib.evaluation import answers
from lib.files import write_jsonl

# what `answer` reads of its settings; a system that does not need one ignores it
SETTINGS = {
    "folder": "where generations-<name>.jsonl and the cache of finished samples go",
    "seed": "of sampled answers",
    "max_new_tokens": "an answer may have",
    "max_new_tokens_code": "an answer to a code item may have; the same where it is left out",
    "batch_size": "sequences decoded together",
    "n": "samples an item, 1 where it is left out",
    "temperature": "0, greedy, where it is left out",
    "dtype": "of matrix products, for a checkpoint",
    "threads": "of llama.cpp",
    "context": "cells of llama.cpp's cache, shared by the sequences decoded together",
}


@contextmanager
def opened(system: dict, settings: dict) -> Iterator[dict]:
    """The system with its model in memory for as long as the block runs.

    Raises ValueError for a path, adapter or file that does not fit, each with its reason.
    """
    if "client" in system or "loaded" in system or "gguf" in system:
        yield system
    elif str(system["path"]).endswith(".gguf"):
        with _open_gguf(system, settings) as gguf:
            tokenizer = models.load_tokenizer(str(system["tokenizer"]))
            yield system | {"gguf": gguf, "loaded": (None, tokenizer), "key": gguf_key(system)}
    else:
        path, dtype = str(system["path"]), settings.get("dtype", "float32")
        revision, adapter = system.get("revision", ""), system.get("adapter", "")
        loaded = models.load(path, dtype, revision, adapter=adapter)
        key = models.key(path, dtype, revision, adapter=adapter)
        yield system | {"loaded": loaded, "key": key}


def answer(system: dict, items: list[dict], settings: dict, label: str = "") -> dict[str, str]:
    """Let a system answer items; raw answers go to generations-<name><label>.jsonl in the folder.

    settings: see SETTINGS. Rows: {"id", "sample", "text", "tokens", "finish", "seconds"}, from
    llama.cpp also "logprobs" and "pieces" a token. What is finished is kept in a cache beside it:
    a killed call, made again, goes on, and a paid answer is not paid for twice.
    Returns {item id: error} of what an endpoint did not answer; these items have no row.
    """
    settings = {"n": 1, "temperature": 0.0, **settings}
    settings.setdefault("max_new_tokens_code", settings["max_new_tokens"])
    name = f"{system['name']}{label}"
    if "client" in system:
        rows, errors = _ask_endpoint(system["client"], name, items, settings), {}
        errors = {row["id"]: row["error"] for row in rows if "error" in row}
        rows = [row for row in rows if "error" not in row]
    else:
        with opened(system, settings) as ready:
            ask = _ask_gguf if "gguf" in ready else _ask_checkpoint
            found, errors = ask(ready, name, items, settings), {}
        rows = [
            {"id": item["id"], "sample": number, **row}
            for item in items
            for number, row in enumerate(found[item["id"]])
        ]
    write_jsonl(answers.path(settings["folder"], name), rows)
    return errors


def limits(items: list[dict], settings: dict) -> Iterator[tuple[int, str, list[dict]]]:
    """(token limit, which items, the items): code may be longer than the rest."""
    is_code = [item["checker"] == "code" for item in items]
    for code, limit in ((False, "max_new_tokens"), (True, "max_new_tokens_code")):
        group = [item for item, own in zip(items, is_code, strict=True) if own == code]
        if group:
            yield settings[limit], "code" if code else "all but code", group


def _ask_checkpoint(system: dict, name: str, items: list[dict], settings: dict) -> dict:
    """{item id: its samples} by transformers, code and the rest apart."""
    from lib.generation.generate import generate

    found = {}
    for limit, which, group in limits(items, settings):
        samples = generate(
            *system["loaded"],
            [item["prompt"] for item in group],
            n=settings["n"],
            temperature=settings["temperature"],
            max_new_tokens=limit,
            seed=settings["seed"],
            batch_size=settings["batch_size"],
            model_key=system["key"],
            store=Path(settings["folder"]) / "store.jsonl",
            progress=f"{name}, {which}",
        )
        found |= {item["id"]: rows for item, rows in zip(group, samples, strict=True)}
    return found


def _ask_gguf(system: dict, name: str, items: list[dict], settings: dict) -> dict:
    """{item id: its samples} by llama.cpp, with the log-probability of every token."""
    from lib.compression.runtime import generate

    _, tokenizer = system["loaded"]
    found = {}
    for limit, which, group in limits(items, settings):
        samples = generate(
            system["gguf"],
            tokenizer,
            [item["prompt"] for item in group],
            n=settings["n"],
            temperature=settings["temperature"],
            max_new_tokens=limit,
            seed=settings["seed"],
            model_key=system["key"],
            store=Path(settings["folder"]) / "store.jsonl",
            progress=f"{name}, {which}",
        )
        found |= {item["id"]: rows for item, rows in zip(group, samples, strict=True)}
    return found


def _ask_endpoint(client, name: str, items: list[dict], settings: dict) -> list[dict]:
    """A row an item and sample, or {"id", "error"}; the client keeps what was paid for."""
    limit = {item["id"]: most for most, _, group in limits(items, settings) for item in group}
    asked = [(item, sample) for item in items for sample in range(settings["n"])]
    requests = [
        {
            "messages": [{"role": "user", "content": item["prompt"]}],
            "max_tokens": limit[item["id"]],
            "temperature": settings["temperature"],
            **({"seed": settings["seed"] + sample} if settings["n"] > 1 else {}),
        }
        for item, sample in asked
    ]
    replies = client.chat(requests, label=f"{name}, {client.model}")
    rows = []
    for (item, sample), reply in zip(asked, replies, strict=True):
        row = {"id": item["id"], "sample": sample}
        if "error" in reply:
            rows.append(row | {"error": reply["error"]})
        else:
            fields = {"text": "text", "tokens": "tokens_out", "finish": "finish"}
            rows.append(row | {field: reply[source] for field, source in fields.items()})
    return rows


def _adapters(system: dict) -> list[str]:
    found = system.get("adapter") or []
    return [str(each) for each in (found if isinstance(found, list) else [found])]


def _open_gguf(system: dict, settings: dict):
    """The file of a system with its adapters on, each at its scale (1 where none is given)."""
    from lib.compression.runtime import Gguf

    adapters = _adapters(system)
    gguf = Gguf(
        system["path"],
        context=settings.get("context", 4096),
        sequences=settings.get("batch_size", 16),
        threads=settings["threads"],
        adapters=adapters,
    )
    if adapters:
        gguf.set_adapters(system.get("scales", [1.0] * len(adapters)))
    return gguf


def gguf_key(system: dict) -> str:
    """16 hex digits that change with the file, its adapters or their scales."""
    from lib.files import content_hash, sha256_file

    adapters = _adapters(system)
    scales = system.get("scales", [1.0] * len(adapters))
    return content_hash(
        sha256_file(system["path"]), *(sha256_file(each) for each in adapters), repr(scales)
    )
