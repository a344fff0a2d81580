"""Which of the teacher's examples are kept: well formed, new, clean, and right as far as that can
be told."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from pathlib import Path

from lib.distillation import teacher
from lib.files import content_hash, read_jsonl, write_jsonl

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
    """(items with "cluster", rejects {"cluster", "stage", "reason", "question"}) of the replies to
    `write_requests`."""
    items, rejects = [], []
    for plan, reply in zip(plans, replies, strict=True):
        for example in reply.get("value", [])[: plan["wanted"]]:
            try:
                items.append(teacher.to_item(example) | {"cluster": plan["cluster"]})
            except ValueError as error:
                rejects.append(
                    _reject(
                        {"cluster": plan["cluster"]}, "malformed", str(error), str(example)[:200]
                    )
                )
    return items, rejects


def sample_text(item: dict, label: str, limit: int = 600) -> str:
    """An example as Markdown: what is asked and the response to train on, verbatim, cut at
    `limit`."""
    asked, said = (
        textwrap.indent(text[:limit], "    ") for text in (item["prompt"], item["meta"]["worked"])
    )
    return f"**{label}**, checked as {item['checker']}\n\n{asked}\n\n*response*:\n\n{said}"


def clean(
    items: list[dict], index, *, threshold: float, permutations: int = 128
) -> tuple[list[dict], list[dict]]:
    """Items without repeats, without evaluation items and held-out failures, and without
    near-duplicates.

    index: `decontaminate.Index` over everything that must not be trained on. Near-duplicates are
    decided on question and answer as in 00; the earlier example stays.
    """
    from lib.dedup import near_duplicates

    kept, rejects, seen = [], [], set()
    for item in items:
        text = f"{item['prompt']}\n{item['meta']['worked']}"
        name = content_hash(item["meta"]["question"], *item["meta"].get("options", []))
        if name in seen:
            rejects.append(_reject(item, "duplicate", "the same question came before"))
        elif found := index.match(text, item["meta"]["question"]):
            rejects.append(_reject(item, "contaminated", f"{found[0][0]}: {found[0][1]}"))
        else:
            kept.append(item)
        seen.add(name)
    texts = [f"{item['prompt']}\n{item['meta']['worked']}" for item in kept]
    drops, _ = near_duplicates.find(texts, threshold=threshold, permutations=permutations)
    keeper = dict(zip(drops["row"], drops["keeper"], strict=True))
    for row, other in keeper.items():
        rejects.append(
            _reject(kept[row], "near-duplicate", f"like: {kept[other]['meta']['question'][:120]}")
        )
    return [item for row, item in enumerate(kept) if row not in keeper], rejects


def verify(items: list[dict], ask, samples: int, judge=None) -> tuple[list[dict], list[dict]]:
    """Items that are right as far as can be told; each kept one says how in "verified".

    Code runs against its tests, which an empty function must fail. A closed question goes back to
    the teacher `samples` times, as a bare question, and at least AGREE of these solutions must
    reach its answer. An open one needs a score above LEAST_SCORE from `judge`, a function like
    `ask`; without a judge it is not kept.
    """
    from lib.evaluation import grade

    kept, rejects = [], []
    closed = [item for item in items if item["checker"] not in ("code", "open")]
    replies = ask(teacher.solve_requests(closed, samples), None, "solve")
    solved = {id(item): replies[n * samples : (n + 1) * samples] for n, item in enumerate(closed)}
    opened = [item for item in items if item["checker"] == "open"]
    scores = (
        judge(
            [teacher.score_request(item["prompt"], item["meta"]["worked"]) for item in opened],
            teacher.parse_score,
            "score",
        )
        if judge and opened
        else [{}] * len(opened)
    )
    scored = {id(item): row for item, row in zip(opened, scores, strict=True)}
    for item in items:
        if item["checker"] == "code":
            stage, note = _tested(item)
        elif item["checker"] == "open":
            score = scored[id(item)].get("value")
            if score is None:
                stage, note = "not verified", scored[id(item)].get("error", "no judge")
            else:
                stage, note = ("" if score > LEAST_SCORE else "score too low"), f"score {score:g}"
        else:
            texts = [row["text"] for row in solved[id(item)] if "text" in row]
            agreed = sum(grade.grade(item, text)["correct"] for text in texts)
            note = f"{agreed} of {samples} solutions agree"
            stage = (
                ""
                if texts and agreed >= AGREE * samples
                else "teacher disagrees"
                if texts
                else "not verified"
            )
        if stage:
            rejects.append(_reject(item, stage, note))
        else:
            kept.append(item | {"verified": note})
    return kept, rejects


def _tested(item: dict) -> tuple[str, str]:
    """("", note) when the code passes its tests and the tests can fail; else (stage, why)."""
    from lib.evaluation import grade

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
    """At most `examples` of the accepted items, the same share of every cluster, earlier ones
    first."""
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
    """Write mixed.jsonl, the accepted items with `share` of rows of the curated file, and
    control.jsonl.

    The control has as many rows, curated ones alone. Curated rows that `index` recognises (an
    evaluation item, a question set aside) are in neither. Returns {"new", "original", "share",
    "contaminated" (rows of mixed.jsonl that `index` recognises when it is read back: 0)}.
    """
    from lib.training import tune

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
    """A row a cluster: wanted, written, lost at each stage that took any, accepted."""
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in rejects)]
    lost = Counter((row["cluster"], row["stage"]) for row in rejects)
    good, rows = Counter(item["cluster"] for item in accepted), []
    for name in [*sorted({plan["cluster"] for plan in plans}), None]:
        mine = [n for n, plan in enumerate(plans) if name is None or plan["cluster"] == name]
        row = {
            "cluster": "all" if name is None else f"{name}: {labels[name]}",
            "wanted": sum(plans[n]["wanted"] for n in mine),
            "written": sum(len(replies[n].get("value", [])[: plans[n]["wanted"]]) for n in mine),
        }
        row |= {
            stage: sum(
                count for (own, at), count in lost.items() if at == stage and name in (None, own)
            )
            for stage in stages
        }
        rows.append(row | {"accepted": sum(good.values()) if name is None else good[name]})
    return rows


def _reject(item: dict, stage: str, reason: str, question: str = "") -> dict:
    asked = question or item["meta"]["question"]
    return {"cluster": item["cluster"], "stage": stage, "reason": reason, "question": asked[:300]}
