"""Answers to evaluation items: from a model or an endpoint, kept as files, graded from the files
alone."""

from __future__ import annotations

from pathlib import Path

from lib.evaluation import grade, judge
from lib.files import read_jsonl, write_jsonl
from lib.markdown import quote

OPEN = "open"  # the checker of items that only a judge can decide


def path(folder: Path, system: str) -> Path:
    """generations-<system>.jsonl in `folder`."""
    return Path(folder) / f"generations-{system}.jsonl"


def generate(
    items: list[dict],
    loaded: tuple,
    *,
    folder: Path,
    system: str,
    model_key: str,
    seed: int,
    max_new_tokens: int,
    max_new_tokens_code: int,
    batch_size: int,
    n: int = 1,
    temperature: float = 0.0,
) -> None:
    """Generate n answers an item with `loaded` (model, tokenizer) and save
    generations-<system>.jsonl.

    Rows: {"id", "sample", "text", "tokens", "finish", "seconds"}. Finished samples are also kept in
    store.jsonl beside it, so that a killed run goes on where it stopped.
    """
    from lib.generation.generate import generate as run

    rows: dict[str, list[dict]] = {}
    for limit, code in ((max_new_tokens, False), (max_new_tokens_code, True)):
        group = [item for item in items if (item["checker"] == "code") == code]
        if group:
            samples = run(
                *loaded,
                [item["prompt"] for item in group],
                n=n,
                temperature=temperature,
                max_new_tokens=limit,
                seed=seed,
                batch_size=batch_size,
                model_key=model_key,
                store=Path(folder) / "store.jsonl",
                progress=f"{system}, {'code' if code else 'all but code'}",
            )
            rows |= {item["id"]: row for item, row in zip(group, samples, strict=True)}
    write_jsonl(
        path(folder, system),
        (
            {"id": item["id"], "sample": k, **row}
            for item in items
            for k, row in enumerate(rows[item["id"]])
        ),
    )


def ask(items: list[dict], client, *, folder: Path, system: str, max_tokens: int) -> list[str]:
    """Let an endpoint answer the items at temperature 0 and save generations-<system>.jsonl.

    Returns the errors of the items it did not answer; these have no row.
    """
    requests = [
        {
            "messages": [{"role": "user", "content": item["prompt"]}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        for item in items
    ]
    replies = client.chat(requests, label=f"{system}, {client.model}")
    fields = {"text": "text", "tokens": "tokens_out", "finish": "finish"}
    write_jsonl(
        path(folder, system),
        (
            {
                "id": item["id"],
                "sample": 0,
                **{name: reply[field] for name, field in fields.items()},
            }
            for item, reply in zip(items, replies, strict=True)
            if "error" not in reply
        ),
    )
    return [reply["error"] for reply in replies if "error" in reply]


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
    """{item id: {"correct", "answer", "extractor", "reason"}} of the answers that a checker
    decided."""
    known = [item for item in items if item["id"] in answers and item["checker"] != OPEN]
    if not known:
        return {}
    texts = [[answers[item["id"]]["text"]] for item in known]
    table = grade.grade_all(known, texts, extractor, progress=progress and extractor is None)
    rows = table[["id", "correct", "answer", "extractor", "reason"]].to_dict("records")
    return {
        row.pop("id"): {
            **row,
            "correct": bool(row["correct"]),
            "answer": row["answer"] if isinstance(row["answer"], str) else None,
        }
        for row in rows
        if row["correct"] in (True, False)
    }


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


def speed(answers: dict[str, dict]) -> dict | None:
    """Throughput of batched generation, tokens a second of wall time. None without timings."""
    rows = [row for row in answers.values() if row.get("seconds")]
    if not rows:
        return None
    return {
        "value": sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows),
        "n": len(rows),
        "unit": "tokens/s",
        "method": "tokens over wall seconds, batched, one run",
    }


def transcripts(items: list[dict], systems: dict[str, tuple[dict, dict]]) -> list[dict]:
    """Rows for `run.finish(transcripts=...)`: what each system was asked, said, and got for it.

    systems: {name: ({item id: answer row}, {item id: grade})}, as `read` and `graded` give them.
    Rows: {system, category, task, prompt, gold, text, extracted, verdict}; verdict is "right",
    "wrong" or "no checker".
    """
    rows = []
    for system, (given, grades) in systems.items():
        for item in items:
            if item["id"] not in given:
                continue
            grade_row = grades.get(item["id"])
            right = {None: "no checker", True: "right", False: "wrong"}
            rows.append(
                {
                    "system": system,
                    "category": item["category"],
                    "task": item["task"],
                    "prompt": item["prompt"],
                    "gold": item["gold"],
                    "text": given[item["id"]]["text"],
                    "extracted": grade_row["answer"] if grade_row else None,
                    "verdict": right[grade_row["correct"] if grade_row else None],
                }
            )
    return rows


def sample_text(item: dict, shown: dict[str, tuple[dict, dict | None]], limit: int = 500) -> str:
    """One item as Markdown: the prompt, then each system's answer and grade, verbatim, cut at
    `limit`.

    shown: {system: (answer row, grade row or None)}.
    """

    gold = (
        f"gold answer `{item['gold']}`"
        if item["gold"] and item["checker"] != "code"
        else item["checker"]
    )
    parts = [f"**{item['category']}, {item['task']}** ({gold})", quote(item["prompt"], limit)]
    for system, (answer, verdict) in shown.items():
        if verdict is None:
            state = "no checker"
        else:
            readable = verdict["answer"] is not None and item["checker"] not in (
                "code",
                "constraints",
            )
            found = (
                f"{verdict['extractor']}: `{verdict['answer']}`" if readable else verdict["reason"]
            )
            state = ("right" if verdict["correct"] else "wrong") + (f" ({found})" if found else "")
        parts += [f"*{system}*, {answer['tokens']} tokens, {state}:", quote(answer["text"], limit)]
    return "\n\n".join(parts)
