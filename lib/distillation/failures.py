"""Running a model over the failure pool, piece by piece, and what is set aside of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lib import meaning, stats
from lib.distillation import pool
from lib.evaluation import answers, grade, systems
from lib.files import ROOT, content_hash, read_jsonl, write_jsonl

RULES = ("lib/evaluation/grade.py", "lib/evaluation/extract.py", "lib/evaluation/code_check.py")


def answer_in_pieces(
    system: dict, items: Iterable[dict], limit: int, folder: Path, settings: dict, piece: int
) -> Iterator[list[dict]]:
    """Answer and grade up to `limit` items greedily; yields the rows of each `piece` of them.

    system: one that `systems.opened` has opened. settings: seed, batch_size, max_new_tokens and
    max_new_tokens_code. Row: the item with "answer" {"text", "tokens", "finish", "seconds"} and
    "grade" {"correct", "answer", "extractor", "reason"}. A piece is one file
    folder/<number>-<key>.jsonl, written whole and last; the key names the items, the model and the
    settings, so a file is read again only for the very same question. Inside a piece each finished
    answer goes to a store first: a killed run repeats none of them and loses none. Memory is that
    of one piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits = {name: settings[name] for name in ("max_new_tokens", "max_new_tokens_code")}
    named = str(sorted({"model_key": system["key"], **limits}.items()))
    source, wanted = iter(items), set()
    for number, start in enumerate(range(0, limit, piece)):
        group = list(islice(source, min(piece, limit - start)))
        if not group:
            break
        key = content_hash(named, *(item["id"] for item in group), _rules())
        path = folder / f"{number:05d}-{key}.jsonl"
        if not path.exists():
            _answer_piece(system | {"name": f"pool {number}"}, group, path, settings)
        wanted.add(path)
        yield list(read_jsonl(path))
    for stale in set(folder.glob("*.jsonl")) - wanted:  # of other settings, or of a longer run
        stale.unlink()


def _answer_piece(system: dict, items: list[dict], path: Path, settings: dict) -> None:
    """Answer and grade the items of one file; the store of finished answers goes when it stands."""
    work = path.parent / f".{path.stem}"
    work.mkdir(exist_ok=True)
    systems.answer(system, items, settings | {"folder": work})
    given = answers.read(work, system["name"])
    texts = [[given[item["id"]]["text"]] for item in items]
    graded = grade.grade_all(items, texts, progress=False)
    verdicts = graded[["correct", "answer", "extractor", "reason"]].to_dict("records")
    write_jsonl(path, (_row(*row) for row in zip(items, given.values(), verdicts, strict=True)))
    for left in work.iterdir():
        left.unlink()
    work.rmdir()


def _rules() -> str:
    """Hash of the modules that decide what is right: stored grades never outlive their rules."""
    return meaning.of_files(ROOT / name for name in RULES)


def _row(item: dict, answer: dict, verdict: dict) -> dict:
    kept = {name: answer[name] for name in ("text", "tokens", "finish", "seconds")}
    extracted = verdict["answer"] if isinstance(verdict["answer"], str) else None
    return {
        **item,
        "answer": kept,
        "grade": {**verdict, "correct": bool(verdict["correct"]), "answer": extracted},
    }


def is_set_aside(row: dict, share: float) -> bool:
    """Whether 18 may only measure on a question: by its content, for `share` of all, always."""
    return int(content_hash("set aside", row["meta"]["question"])[:8], 16) / 16**8 < share


def parted(rows: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """(failures that the teacher may see, everything set aside) of rows with "cluster".

    cluster: None for what was right. What was right is set aside, too: questions chosen for having
    failed can only get better.
    """
    aside = [row for row in rows if is_set_aside(row, share)]
    shown = [row for row in rows if row["cluster"] is not None and not is_set_aside(row, share)]
    return shown, sorted(aside, key=lambda row: row["id"])


def all_contents(rows: list[dict]) -> set[str]:
    """The hashes under which any of these questions is recognised."""
    return set().union(*(pool.contents(row) for row in rows))


def read(folder: Path) -> tuple[list[dict], list[dict], dict]:
    """(failures to show a teacher, rows set aside, about) as 17 has left them in its folder.

    about: labels {cluster: name}, sources, model_key, the limits of the answers, and asked, the
    hashes of all questions that were.
    """
    shown, aside = (list(read_jsonl(folder / f"{part}.jsonl")) for part in ("failures", "aside"))
    about = json.loads((folder / "clusters.json").read_text(encoding="utf-8"))
    labels = {int(number): label for number, label in about["labels"].items()}
    asked = set(json.loads((folder / "asked.json").read_text(encoding="utf-8")))
    return shown, aside, about | {"labels": labels, "asked": asked}


def by_task(rows: list[dict]) -> list[dict]:
    """A row a task: asked, the share that failed, unreadable and cut answers."""
    table = []
    for task in dict.fromkeys(row["task"] for row in rows):
        asked = [row for row in rows if row["task"] == task]
        failed = sum(not row["grade"]["correct"] for row in asked)
        table.append(
            {
                "task": task,
                "category": asked[0]["category"],
                "asked": len(asked),
                "failed": stats.proportion(failed, len(asked)),
                "no answer found": sum(row["grade"]["answer"] is None for row in asked),
                "cut": sum(row["answer"]["finish"] == "length" for row in asked),
            }
        )
    return sorted(table, key=lambda row: (row["category"], row["task"]))


def transcripts(failed: list[dict], system: str, most: int) -> list[dict]:
    """Rows for `run.finish(transcripts=...)` of `most` failures, chosen by content hash."""
    sample = sorted(failed, key=lambda row: content_hash("transcripts", row["id"]))[:most]
    given = {row["id"]: row["answer"] for row in sample}
    return answers.transcripts(
        sample, {system: (given, {row["id"]: row["grade"] for row in sample})}
    )
