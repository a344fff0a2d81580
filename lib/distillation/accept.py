"""Which of the teacher's examples are kept: well formed, new, clean, right if that can be told."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from lib.dedup import near_duplicates
from lib.distillation import teacher
from lib.evaluation import grade
from lib.files import content_hash, read_jsonl, write_jsonl
from lib.markdown import quote
from lib.training import tune

STAGES = (
    "malformed",
    "duplicate",
    "contaminated",
    "near-duplicate",
    "fails its tests",
    "teacher disagrees",
    "score too low",
    "not verified",
)
AGREE = 2 / 3  # of the teacher's solutions that must reach its own answer
LEAST_SCORE = 8.0  # of 10; a judge's score must lie above


def candidates(plans: list[dict], replies: list[dict]) -> tuple[list[dict], list[dict]]:
    """(items with "cluster", rejects) of the replies to `write_requests`.

    rejects: {"cluster", "stage", "reason", "question"}.
    """
    items, rejects = [], []
    for plan, reply in zip(plans, replies, strict=True):
        for example in reply.get("value", [])[: plan["wanted"]]:
            try:
                items.append(teacher.to_item(example) | {"cluster": plan["cluster"]})
            except ValueError as error:
                rejects.append(_reject(plan, "malformed", str(error), str(example)[:200]))
    return items, rejects


def sample_text(item: dict, label: str, limit: int = 600) -> str:
    """An example as Markdown: what is asked and the response to train on, cut at `limit`."""
    asked, worked = quote(item["prompt"], limit), quote(item["meta"]["worked"], limit)
    return f"**{label}**, checked as {item['checker']}\n\n{asked}\n\n*response*:\n\n{worked}"


def set_aside_texts(aside: list[dict]) -> list[tuple[str, str, str | None]]:
    """(name, question, answer) of 17's rows set aside, as `decontaminate.Index` takes them."""
    return [
        (
            f"aside/{row['id']}",
            row["meta"]["question"],
            row["gold"] if row["checker"] == "code" else None,
        )
        for row in aside
    ]


def clean(
    items: list[dict], index, *, threshold: float, permutations: int = 128
) -> tuple[list[dict], list[dict]]:
    """Items without repeats, evaluation items, held-out failures and near-duplicates.

    index: `decontaminate.Index` over everything that must not be trained on. Near-duplicates are
    decided on question and answer as in 00; the earlier example stays.
    """
    kept, rejects, seen = [], [], set()
    for item in items:
        text = f"{item['prompt']}\n{item['meta']['worked']}"
        name = content_hash(item["meta"]["question"], *item["meta"].get("options", []))
        if name in seen:
            rejects.append(_reject(item, "duplicate", "the same question came before"))
        elif hits := index.match(text, item["meta"]["question"]):
            rejects.append(_reject(item, "contaminated", f"{hits[0][0]}: {hits[0][1]}"))
        else:
            kept.append(item)
        seen.add(name)
    texts = [f"{item['prompt']}\n{item['meta']['worked']}" for item in kept]
    drops, _ = near_duplicates.find(texts, threshold=threshold, permutations=permutations)
    keeper = dict(zip(drops["row"], drops["keeper"], strict=True))
    for row, other in keeper.items():
        reason = f"like: {kept[other]['meta']['question'][:120]}"
        rejects.append(_reject(kept[row], "near-duplicate", reason))
    return [item for row, item in enumerate(kept) if row not in keeper], rejects


def verify(items: list[dict], ask, samples: int, judge=None) -> tuple[list[dict], list[dict]]:
    """Items that are right as far as can be told; each kept one says how in "verified".

    Code runs against its tests, which an empty function must fail. A closed question goes back to
    the teacher `samples` times, as a bare question, and at least AGREE of these solutions must
    reach its answer. An open one needs a score above LEAST_SCORE from `judge`, a function like
    `ask`; without a judge it is not kept.
    """
    kept, rejects = [], []
    closed = [item for item in items if item["checker"] not in ("code", "open")]
    replies = ask(teacher.solve_requests(closed, samples), None, "solve")
    solved = {id(item): replies[n * samples : (n + 1) * samples] for n, item in enumerate(closed)}
    scored = _scores([item for item in items if item["checker"] == "open"], judge)
    for item in items:
        if item["checker"] == "code":
            stage, note = _tested(item)
        elif item["checker"] == "open":
            stage, note = _scored(scored[id(item)])
        else:
            stage, note = _solved(item, solved[id(item)], samples)
        if stage:
            rejects.append(_reject(item, stage, note))
        else:
            kept.append(item | {"verified": note})
    return kept, rejects


def _scores(items: list[dict], judge) -> dict[int, dict]:
    """{id() of an open item: the judge's reply}; empty replies without a judge."""
    rows: list[dict] = [{}] * len(items)
    if judge and items:
        requests = [teacher.score_request(item["prompt"], item["meta"]["worked"]) for item in items]
        rows = judge(requests, teacher.parse_score, "score")
    return {id(item): row for item, row in zip(items, rows, strict=True)}


def _scored(reply: dict) -> tuple[str, str]:
    """("", note) when the judge's score is high enough; else (stage, why)."""
    score = reply.get("value")
    if score is None:
        return "not verified", reply.get("error", "no judge")
    return "" if score > LEAST_SCORE else "score too low", f"score {score:g}"


def _solved(item: dict, replies: list[dict], samples: int) -> tuple[str, str]:
    """("", note) when enough of the teacher's solutions reach its own answer; else (stage, why)."""
    texts = [reply["text"] for reply in replies if "text" in reply]
    agreed = sum(grade.grade(item, text)["correct"] for text in texts)
    note = f"{agreed} of {samples} solutions agree"
    if not texts:
        return "not verified", note
    return "" if agreed >= AGREE * samples else "teacher disagrees", note


def _tested(item: dict) -> tuple[str, str]:
    """("", note) when the code passes its tests and the tests can fail; else (stage, why)."""
    result = grade.grade(item, item["meta"]["worked"])
    if not result["correct"]:
        return "fails its tests", result["reason"]
    try:
        names = [
            node.name for node in ast.parse(item["gold"]).body if isinstance(node, ast.FunctionDef)
        ]
    except SyntaxError:
        names = []
    empty = "\n".join(f"def {name}(*a, **k):\n    return None" for name in names)
    if not names or grade.grade(item, f"```python\n{empty}\n```")["correct"]:
        return "fails its tests", "an empty function passes them"
    return "", f"passes {len(item['meta']['tests'])} tests"


def choose(items: list[dict], examples: int) -> list[dict]:
    """At most `examples` of the items, the same share of every cluster, earlier ones first."""
    groups: dict[int, list[dict]] = {}
    for item in items:
        groups.setdefault(item["cluster"], []).append(item)
    turns = [
        (place / len(rows), name, place)
        for name, rows in groups.items()
        for place in range(len(rows))
    ]
    return [groups[name][place] for _, name, place in sorted(turns)[:examples]]


def write_mix(
    accepted: list[dict], curated: Path, index, share: float, seed: int, folder: Path
) -> dict:
    """Write mixed.jsonl and control.jsonl into `folder`, and count what is in them.

    The mix is the accepted items with `share` of rows of the curated file. The control has as many
    rows, curated ones alone. Curated rows that `index` recognises (an evaluation item, a question
    set aside) are in neither. Returns {"new", "original", "share", "contaminated" (rows of
    mixed.jsonl that `index` recognises when it is read back: 0)}.
    """
    originals, mixed = folder / "originals.jsonl", folder / "mixed.jsonl"
    write_jsonl(originals, (row for row in read_jsonl(curated) if not _known(row, index)))
    rows = {row["id"]: row for row in map(to_row, accepted)}
    counts = tune.mix(list(rows.values()), originals, share, seed, mixed)
    by_hash = sorted(
        (content_hash(str(seed), "control", row["id"]), row["id"]) for row in read_jsonl(originals)
    )
    chosen = {name for _, name in by_hash[: counts["new"] + counts["original"]]}
    write_jsonl(
        folder / "control.jsonl", (row for row in read_jsonl(originals) if row["id"] in chosen)
    )
    return counts | {"contaminated": sum(_known(row, index) for row in read_jsonl(mixed))}


def _known(row: dict, index) -> bool:
    return bool(index.match(f"{row['instruction']}\n{row['response']}", row["instruction"]))


def to_row(item: dict) -> dict:
    """An accepted item as a curated row to train on."""
    worked = item["meta"]["worked"]
    return {
        "id": content_hash(item["prompt"], worked),
        "instruction": item["prompt"],
        "response": worked,
        "source": "teacher",
        "domain": item["category"],
        "licence": item["licence"],
        "cluster": item["cluster"],
    }


def table(
    plans: list[dict],
    replies: list[dict],
    rejects: list[dict],
    accepted: list[dict],
    labels: dict[int, str],
) -> list[dict]:
    """A row a cluster, and one of all: wanted, written, refused, accepted."""
    refused = Counter(row["cluster"] for row in rejects)
    good = Counter(item["cluster"] for item in accepted)
    wanted, written = Counter(), Counter()
    for plan, reply in zip(plans, replies, strict=True):
        wanted[plan["cluster"]] += plan["wanted"]
        written[plan["cluster"]] += len(reply.get("value", [])[: plan["wanted"]])
    counts = {"wanted": wanted, "written": written, "refused": refused, "accepted": good}
    rows = [
        {"cluster": f"{number}: {labels[number]}"}
        | {name: count[number] for name, count in counts.items()}
        for number in sorted(wanted)
    ]
    return [*rows, {"cluster": "all"} | {name: sum(c.values()) for name, c in counts.items()}]


def refusals(rejects: list[dict]) -> list[dict]:
    """A row a stage that took any, in their order: how many, and the first of its reasons."""
    rows = []
    for stage in STAGES:
        reasons = [row["reason"] for row in rejects if row["stage"] == stage]
        if reasons:
            rows.append({"stage": stage, "examples": len(reasons), "for example": reasons[0][:120]})
    return rows


def _reject(item: dict, stage: str, reason: str, question: str = "") -> dict:
    asked = question or item["meta"]["question"]
    return {"cluster": item["cluster"], "stage": stage, "reason": reason, "question": asked[:300]}
