"""The embedded training data: installed packages as raw files of the plan's seven sources.

The files have the layouts and the containers of the real ones, so that readers and normalisers run
for real. What curation must find is put in and counted: near and exact duplicates, other languages,
broken rows, rows unfit for training, and copies of evaluation items. `injected.jsonl` beside the
files says which row is what.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from lib import meaning, prompts
from lib.files import ROOT, atomic_write_json, replacing, write_jsonl
from lib.packaged import facts as packaged_facts
from lib.packaged import faults, generated
from lib.packaged import functions as packaged_code
from lib.packaged import rows as packaged_rows

# file -> share of the rows; containers as published: a JSON array for the Alpaca family, else lines
FILES = {
    "openorca.jsonl": 0.20,
    "alpaca_gpt4.json": 0.16,
    "wizardlm_evol_instruct.jsonl": 0.12,
    "dolly.jsonl": 0.12,
    "metamathqa.jsonl.gz": 0.20,
    "codealpaca.json": 0.12,
    "hh_rlhf.jsonl.gz": 0.08,
}
SYSTEMS = (
    "",
    "You are a helpful assistant.",
    "You solve puzzles. Think first, then answer in one sentence.",
)


def build(
    folder: Path, seed: int, rows: int, evaluation: list[tuple[str, str, str | None]]
) -> dict:
    """Write raw files into `folder`, or keep them: {"rows", "injected": {kind: count}, "files"}.

    evaluation: (name, question, answer) to copy contaminated rows from. The same arguments and the
    same installed packages give the same bytes.
    """
    modules = sorted((ROOT / "lib" / "packaged").glob("*.py"))
    digest = hashlib.sha256(meaning.of_files(modules).encode())
    digest.update(json.dumps([seed, rows, [name for name, _, _ in evaluation]]).encode())
    marker, key = folder / ".built.json", digest.hexdigest()
    if marker.exists() and (known := json.loads(marker.read_text(encoding="utf-8")))["key"] == key:
        return known
    marker.unlink(missing_ok=True)
    rng = random.Random(f"packaged {seed}")
    sources = {}
    for name, share in FILES.items():
        sources[name] = list(islice(_rows(name, seed, rows), round(rows * share)))
    faults.inject(sources, rows, evaluation, raw_row, rng)
    truth, licences = [], {}
    for name, entries in sources.items():
        rng.shuffle(entries)
        stated = any(
            isinstance(entry["raw"], dict) and "licence" in entry["raw"] for entry in entries
        )
        licences[name] = "stated in each row" if stated else generated.GYM_LICENCE
        _write(folder / name, [entry["raw"] for entry in entries])
        for line, entry in enumerate(entries, 1):
            entry["origin"] = f"{name}:{line}"
            truth += [entry] if "kind" in entry else []
    kept = ("kind", "origin", "stages", "jaccard")
    known = [{key: entry[key] for key in kept if key in entry} for entry in truth]
    for record, entry in zip(known, truth, strict=True):
        record |= {"of": entry["of"]["origin"]} if "of" in entry else {}
    write_jsonl(folder / "injected.jsonl", known)
    atomic_write_json(folder / "licences.json", licences)
    injected = Counter(entry["kind"] for entry in truth)
    total = sum(map(len, sources.values()))
    summary = {"key": key, "rows": total, "injected": injected, "files": list(FILES)}
    atomic_write_json(marker, summary)
    return summary


def _write(path: Path, raws: list) -> None:
    lines = [
        raw if isinstance(raw, bytes) else json.dumps(raw, ensure_ascii=False).encode()
        for raw in raws
    ]
    array = ".json" in path.suffixes[:1]
    body = b"[\n" + b",\n".join(lines) + b"\n]\n" if array else b"\n".join(lines) + b"\n"
    with replacing(path, "wb") as handle:
        # no time stamp in the gzip header, so that the same rows give the same file
        handle.write(gzip.compress(body, mtime=0) if path.suffix == ".gz" else body)


def _rows(name: str, seed: int, rows: int) -> Iterator[dict]:
    """Entries {"raw", "text": (instruction, response)} of one file, maybe without end."""
    rng = random.Random(f"{name} {seed}")
    per_family = rows // 10  # more items than any file takes
    words = packaged_facts.text_tasks(seed + sum(map(ord, name)))
    if name.startswith("openorca"):
        items = packaged_rows.gym("reasoning", seed, per_family)
    elif name.startswith("metamath"):
        items = packaged_rows.gym("math", seed, per_family)
    elif name.startswith("wizardlm"):
        items = packaged_rows.gym("math", seed + 50_000, per_family)
    elif name.startswith("codealpaca"):
        items = _code(rng)
    elif name.startswith("dolly"):
        facts = packaged_facts.facts()
        items = chain(packaged_facts.knowledge(seed), rng.sample(facts, len(facts)), words)
    else:
        items = words
    for number, item in enumerate(items):
        raw = raw_row(name, number, item, words, rng)
        asked = f"{raw['instruction']}\n\n{raw['input']}" if raw.get("input") else item["question"]
        yield {"raw": raw, "text": (asked, item["answer"])}


def _code(rng: random.Random) -> Iterator[dict]:
    functions = list(packaged_code.all_functions())
    for function in rng.sample(functions, len(functions)):
        head = (
            function["signature"]
            + '\n    """'
            + function["doc"].replace("\n", "\n    ")
            + '\n    """'
        )
        asked = prompts.render("code", head)
        if rng.random() < 0.4:
            asked = f"Write a Python function named {function['name']}.\n\n{function['doc']}"
        said = f"```python\n{function['code']}\n```"
        yield {"question": asked, "answer": said, "licence": function["licence"]}


def raw_row(
    name: str, number: int, item: dict, words: Iterator[dict], rng: random.Random, alone=False
):
    """An item in the raw layout of the file's source; `alone` without history or split."""
    asked, said, licence = item["question"], item["answer"], item["licence"]
    if name.startswith("openorca"):
        system = rng.choice(SYSTEMS)
        return {"id": f"cot.{number}", "system_prompt": system, "question": asked, "response": said}
    if name.startswith("alpaca"):
        head, mark, tail = asked.partition(": ")
        split = mark and not alone and rng.random() < 0.7
        return {
            "instruction": f"{head}." if split else asked,
            "input": tail if split else "",
            "output": said,
            "licence": licence,
        }
    if name.startswith("wizardlm"):
        turns = [("human", asked), ("gpt", said)]
        if not alone and rng.random() < 0.3:  # what came before, as history
            first = next(words)
            turns = [("human", first["question"]), ("gpt", first["answer"]), *turns]
        return {
            "idx": number,
            "conversations": [{"from": who, "value": text} for who, text in turns],
        }
    if name.startswith("dolly"):
        return {
            "instruction": asked,
            "context": "",
            "response": said,
            "category": "open_qa",
            "licence": licence,
        }
    if name.startswith("metamath"):
        first = item.get("bare", asked)
        return {"query": asked, "response": said, "type": "GSM_AnsAug", "original_question": first}
    if name.startswith("codealpaca"):
        return {"instruction": asked, "input": "", "output": said, "licence": licence}
    other = next(words)
    before = f"\n\nHuman: {other['question']}\n\nAssistant: {other['answer']}"
    before = before if not alone and rng.random() < 0.3 else ""
    start = f"{before}\n\nHuman: {asked}\n\nAssistant: "
    return {"chosen": start + said, "rejected": start + "I do not know.", "licence": licence}
