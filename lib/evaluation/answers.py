"""Answers to evaluation items: kept as files, graded from the files alone, shown as text."""

from __future__ import annotations

from pathlib import Path

from lib.estimates import NOT_MEASURED, Estimate
from lib.evaluation import grade, judge
from lib.files import read_jsonl, write_jsonl
from lib.markdown import quote

OPEN = "open"  # the checker of items that only a judge can decide


def path(folder: Path, system: str) -> Path:
    """generations-<system>.jsonl in `folder`."""
    return Path(folder) / f"generations-{system}.jsonl"


def read(folder: Path, system: str, sample: int = 0) -> dict[str, dict]:
    """{item id: row} of one sample. FileNotFoundError says how to get the file."""
    file = path(folder, system)
    if not file.exists():
        raise FileNotFoundError(
            f"{file.name} is missing; run once with regrade_only false to generate it"
        )
    return {row["id"]: row for row in read_jsonl(file) if row["sample"] == sample}


def graded(
    items: list[dict], answers: dict[str, dict], extractor: str | None = None, progress: bool = True
) -> dict[str, dict]:
    """{item id: {"correct", "answer", "extractor", "reason"}} of what a checker decided."""
    known = [item for item in items if item["id"] in answers and item["checker"] != OPEN]
    if not known:
        return {}
    texts = [[answers[item["id"]]["text"]] for item in known]
    table = grade.grade_all(known, texts, extractor, progress=progress and extractor is None)
    rows = table[["id", "correct", "answer", "extractor", "reason"]].to_dict("records")
    return {row["id"]: _grade_row(row) for row in rows if row["correct"] in (True, False)}


def of_sample(graded_samples, number: int) -> dict[str, dict]:
    """{item id: grade} of one sample, as `graded` gives them, of a frame of `grade.grade_all`."""
    rows = graded_samples[graded_samples["sample"] == number].to_dict("records")
    return {row["id"]: _grade_row(row) for row in rows if row["correct"] in (True, False)}


def _grade_row(row: dict) -> dict:
    """A row of `grade.grade_all` with plain values: an answer that is no text is None."""
    answer = row["answer"] if isinstance(row["answer"], str) else None
    plain = {"correct": bool(row["correct"]), "answer": answer}
    return plain | {key: row[key] for key in ("extractor", "reason")}


def verdicts(
    items: list[dict],
    candidate: dict[str, dict],
    reference: dict[str, dict],
    *,
    file: Path,
    client=None,
) -> dict[str, dict]:
    """{item id: row of `judge.pairwise`} for the open items that both sides answered.

    With a client the judge is asked and its verdicts are saved in `file`. Without one they are read
    from there; a verdict on other texts than these is left out.
    """
    pairs = [
        (item["id"], item["prompt"], candidate[item["id"]]["text"], reference[item["id"]]["text"])
        for item in items
        if item["checker"] == OPEN and item["id"] in candidate and item["id"] in reference
    ]
    if client is not None:
        _, *texts = zip(*pairs, strict=True) if pairs else ((), (), (), ())
        rows = judge.pairwise(client, *map(list, texts), label=f"judge, {client.model}")
        write_jsonl(file, ({"id": pair[0], **row} for pair, row in zip(pairs, rows, strict=True)))
    stored = {row["id"]: row for row in read_jsonl(file)} if file.exists() else {}
    keys = {name: judge.pair_key(*texts) for name, *texts in pairs}
    return {
        name: stored[name] for name, key in keys.items() if stored.get(name, {}).get("pair") == key
    }


def speed(answers: dict[str, dict]) -> Estimate:
    """Throughput of batched generation, tokens a second of wall time; an endpoint tells none."""
    rows = [row for row in answers.values() if row.get("seconds")]
    if not rows:
        return NOT_MEASURED
    return Estimate(
        value=sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows),
        n=len(rows),
        unit="tokens/s",
        method="tokens over wall seconds, batched, one run",
    )


def transcripts(items: list[dict], systems: dict[str, tuple[dict, dict]]) -> list[dict]:
    """Rows for `run.finish(transcripts=...)`: what each system was asked, said, and got for it.

    systems: {name: ({item id: answer row}, {item id: grade})}, as `read` and `graded` give them.
    Rows: {system, category, task, prompt, gold, text, extracted, verdict}; verdict is "right",
    "wrong" or "no checker"; code, which tests decide on, has no gold and nothing extracted.
    """
    return [
        {
            "system": system,
            **{key: item[key] for key in ("category", "task", "prompt")},
            **_extracted_and_gold(item, grades.get(item["id"], {})),
            "text": given[item["id"]]["text"],
            "verdict": verdict(grades.get(item["id"])),
        }
        for system, (given, grades) in systems.items()
        for item in items
        if item["id"] in given
    ]


def _extracted_and_gold(item: dict, grade_row: dict) -> dict:
    """What a checker compared; of code nothing: tests decide, and solutions are not for a page."""
    if item["checker"] == "code":
        return {"extracted": None, "gold": None}
    return {"extracted": grade_row.get("answer"), "gold": item["gold"]}


def verdict(grade_row: dict | None) -> str:
    """A grade in words."""
    if grade_row is None:
        return "no checker"
    return "right" if grade_row["correct"] else "wrong"


def sample_text(item: dict, shown: dict[str, tuple[dict, dict | None]], limit: int = 500) -> str:
    """One item as Markdown: the prompt, then each system's answer and grade, verbatim and cut.

    shown: {system: (answer row, grade row or None)}.
    """
    parts = _asked(item, limit)
    for system, (answer, grade_row) in shown.items():
        state = verdict(grade_row)
        if grade_row is not None:
            readable = item["checker"] not in ("code", "constraints")
            if readable and grade_row["answer"] is not None:
                state += f" ({grade_row['extractor']}: `{grade_row['answer']}`)"
            elif grade_row["reason"]:
                state += f" ({grade_row['reason']})"
        parts += [f"*{system}*, {answer['tokens']} tokens, {state}:", quote(answer["text"], limit)]
    return "\n\n".join(parts)


def ungraded_text(item: dict, shown: dict[str, dict], limit: int = 300) -> str:
    """One item as Markdown: the prompt, then answers that nothing has graded yet, {label: row}."""
    parts = _asked(item, limit)
    for label, answer in shown.items():
        parts += [f"*{label}*, {answer['tokens']} tokens:", quote(answer["text"], limit)]
    return "\n\n".join(parts)


def _asked(item: dict, limit: int) -> list[str]:
    """Heading and prompt of an item."""
    gold = item["checker"]
    if item["gold"] and gold != "code":
        gold = f"gold answer `{item['gold']}`"
    return [f"**{item['category']}, {item['task']}** ({gold})", quote(item["prompt"], limit)]
