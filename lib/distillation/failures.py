"""Running a model over the failure pool, piece by piece: constant memory, and a kill costs no
finished answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lib import meaning
from lib.files import ROOT, content_hash, read_jsonl, write_jsonl

RULES = ("lib/evaluation/grade.py", "lib/evaluation/extract.py", "lib/evaluation/code_check.py")


def ask(
    items: Iterable[dict],
    limit: int,
    loaded: tuple,
    folder: Path,
    *,
    model_key: str,
    max_new_tokens: int,
    max_new_tokens_code: int,
    batch_size: int,
    piece: int,
    seed: int,
) -> Iterator[list[dict]]:
    """Answer and grade up to `limit` items greedily, `piece` at a time; yields the rows of each
    piece.

    Row: the item with "answer" {"text", "tokens", "finish", "seconds"} and "grade" {"correct",
    "answer", "extractor", "reason"}. A piece is one file folder/<number>-<key>.jsonl, written whole
    and last; the key names the items, the model and the settings, so a file is read again only for
    the very same question. Inside a piece each finished answer goes to a store first: a killed run
    repeats none of them and loses none.
    """
    from lib.evaluation import answers, grade

    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "model_key": model_key,
        "max_new_tokens": max_new_tokens,
        "max_new_tokens_code": max_new_tokens_code,
    }
    source, wanted = iter(items), set()
    for number, start in enumerate(range(0, limit, piece)):
        group = list(islice(source, min(piece, limit - start)))
        if not group:
            break
        key = content_hash(str(sorted(known.items())), *(item["id"] for item in group), _rules())
        path = folder / f"{number:05d}-{key}.jsonl"
        if not path.exists():
            work = folder / f".{path.stem}"
            work.mkdir(exist_ok=True)
            name = f"pool {number}"
            answers.generate(
                group, loaded, folder=work, system=name, seed=seed, batch_size=batch_size, **known
            )
            texts = answers.read(work, name)
            graded = grade.grade_all(
                group, [[texts[item["id"]]["text"]] for item in group], progress=False
            )
            verdicts = graded[["correct", "answer", "extractor", "reason"]].to_dict("records")
            write_jsonl(
                path, (_row(*each) for each in zip(group, texts.values(), verdicts, strict=True))
            )
            for left in work.iterdir():
                left.unlink()
            work.rmdir()
        wanted.add(path)
        yield list(read_jsonl(path))
    for stale in set(folder.glob("*.jsonl")) - wanted:  # of other settings, or of a longer run
        stale.unlink()


def _rules() -> str:
    """Hash of the modules that decide what is right, so that stored grades never outlive their
    rules."""
    return meaning.of_files(ROOT / name for name in RULES)


def _row(item: dict, answer: dict, verdict: dict) -> dict:
    kept = {name: answer[name] for name in ("text", "tokens", "finish", "seconds")}
    found = verdict["answer"] if isinstance(verdict["answer"], str) else None
    return {
        **item,
        "answer": kept,
        "grade": {**verdict, "correct": bool(verdict["correct"]), "answer": found},
    }


def held_out(row: dict, share: float) -> bool:
    """Whether a question is set aside, by the hash of its content: true for `share` of all
    questions, always."""
    return int(content_hash("set aside", row["meta"]["question"])[:8], 16) / 16**8 < share


def by_task(rows: list[dict]) -> list[dict]:
    """A row a task for a reader: asked, failed, share failed with its interval, unreadable and cut
    answers."""
    from lib import stats
    from lib.estimates import words

    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        failed = sum(not row["grade"]["correct"] for row in mine)
        found.append(
            {
                "task": task,
                "category": mine[0]["category"],
                "asked": len(mine),
                "failed": words(stats.proportion(failed, len(mine))),
                "no answer found": sum(row["grade"]["answer"] is None for row in mine),
                "cut": sum(row["answer"]["finish"] == "length" for row in mine),
            }
        )
    return sorted(found, key=lambda row: (row["category"], row["task"]))
