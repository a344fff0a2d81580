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
from lib.compression import runtime
from lib.evaluation import answers
from lib.files import content_hash, sha256_file, write_jsonl
from lib.generation import generate

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
    if "client" in system or "loaded" in system:
        yield system
    elif str(system["path"]).endswith(".gguf"):
        if not system.get("tokenizer"):
            raise ValueError(f"{system['name']}: a GGUF needs the folder of its `tokenizer`")
        tokenizer = models.load_tokenizer(str(system["tokenizer"]))
        with _open_gguf(system, settings) as gguf:
            key = gguf_key(system, tokenizer.chat_template)
            yield system | {"gguf": gguf, "loaded": (None, tokenizer), "key": key}
    else:
        path, dtype = str(system["path"]), settings.get("dtype", "float32")
        revision, adapter = system.get("revision", ""), system.get("adapter", "")
        loaded = models.load(path, dtype, revision, adapter=adapter)
        key = models.key(path, dtype, revision, adapter=adapter)
        yield system | {"loaded": loaded, "key": key}


def answer(system: dict, items: list[dict], settings: dict, label: str = "") -> dict[str, str]:
    """Let a system answer items; raw answers go to generations-<name><label>.jsonl in the folder.

    settings: see SETTINGS. Rows: {"id", "sample", "text", "tokens", "finish", "seconds"}, from
    llama.cpp also "logprobs" and "pieces" a token; an endpoint tells no "seconds". What is finished
    is kept in a cache beside it: a killed call, made again, goes on, and a paid answer is not paid
    for twice.
    Returns {item id: error} of what an endpoint did not answer; these items have no row.
    """
    settings = {"n": 1, "temperature": 0.0, **settings}
    settings.setdefault("max_new_tokens_code", settings["max_new_tokens"])
    name = f"{system['name']}{label}"
    Path(settings["folder"]).mkdir(parents=True, exist_ok=True)
    if "client" in system:
        samples, errors = _ask_endpoint(system["client"], name, items, settings)
    else:
        with opened(system, settings) as ready:
            samples, errors = _ask_model(ready, name, items, settings), {}
    rows = [
        {"id": item["id"], "sample": number, **row}
        for item in items
        if item["id"] not in errors
        for number, row in enumerate(samples[item["id"]])
    ]
    write_jsonl(answers.path(settings["folder"], name), rows)
    return errors


def limits(items: list[dict], settings: dict) -> Iterator[tuple[int, str, list[dict]]]:
    """(token limit, which items, the items): code may be longer than the rest."""
    is_code = [item["checker"] == "code" for item in items]
    for code, limit in ((False, "max_new_tokens"), (True, "max_new_tokens_code")):
        group = [item for item, coded in zip(items, is_code, strict=True) if coded == code]
        if group:
            yield settings[limit], "code" if code else "all but code", group


def _ask_model(system: dict, name: str, items: list[dict], settings: dict) -> dict:
    """{item id: its samples} by llama.cpp or transformers, code and the rest apart."""
    model, tokenizer = system["loaded"]
    options = {"n": settings["n"], "temperature": settings["temperature"]}
    options |= {"seed": settings["seed"], "model_key": system["key"]}
    options |= {"store": Path(settings["folder"]) / "store.jsonl"}
    samples = {}
    for limit, kind, group in limits(items, settings):
        prompts = [item["prompt"] for item in group]
        options |= {"max_new_tokens": limit, "progress": f"{name}, {kind}"}
        if "gguf" in system:
            rows = runtime.generate(system["gguf"], tokenizer, prompts, **options)
        else:
            batch_size = settings["batch_size"]
            rows = generate.generate(model, tokenizer, prompts, batch_size=batch_size, **options)
        samples |= {item["id"]: row for item, row in zip(group, rows, strict=True)}
    return samples


def _ask_endpoint(client, name: str, items: list[dict], settings: dict) -> tuple[dict, dict]:
    """({item id: its samples}, {item id: error}); the client keeps what was paid for.

    An item with an error in one of its samples is an item with an error.
    """
    limit = {item["id"]: most for most, _, group in limits(items, settings) for item in group}
    asked = [(item, number) for item in items for number in range(settings["n"])]
    requests = [
        {
            "messages": generate.as_messages(item["prompt"]),
            "max_tokens": limit[item["id"]],
            "temperature": settings["temperature"],
            **({"seed": settings["seed"] + number} if settings["n"] > 1 else {}),
        }
        for item, number in asked
    ]
    replies = client.chat(requests, label=f"{name}, {client.model}")
    samples, errors = {item["id"]: [] for item in items}, {}
    for (item, _), reply in zip(asked, replies, strict=True):
        if "error" in reply:
            errors[item["id"]] = reply["error"]
        else:
            row = {"text": reply["text"], "tokens": reply["tokens_out"], "finish": reply["finish"]}
            samples[item["id"]].append(row)
    return samples, errors


def _adapters(system: dict) -> tuple[list[str], list[float]]:
    """Adapter files of a GGUF system and their scales, 1 where none is given."""
    paths = system.get("adapter") or []
    paths = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    scales = system.get("scales", [1.0] * len(paths))
    if len(scales) != len(paths):
        raise ValueError(f"{system['name']}: {len(paths)} adapters but {len(scales)} scales")
    return paths, scales


@contextmanager
def _open_gguf(system: dict, settings: dict) -> Iterator[runtime.Gguf]:
    """The file of a system with its adapters on, each at its scale."""
    adapters, scales = _adapters(system)
    options = {"context": settings.get("context", 4096), "threads": settings["threads"]}
    options |= {"sequences": settings.get("batch_size", 16), "adapters": adapters}
    with runtime.Gguf(system["path"], **options) as gguf:
        if adapters:
            gguf.set_adapters(scales)
        yield gguf


def gguf_key(system: dict, chat_template: str) -> str:
    """16 hex digits that change with the file, its adapters, their scales or the chat template."""
    adapters, scales = _adapters(system)
    hashes = [sha256_file(path) for path in (system["path"], *adapters)]
    return content_hash(*hashes, repr(scales), chat_template)
