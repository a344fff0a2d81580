"""A model's own answers as training data: the text to learn of each prompt, filters, their yield.

The vote: of k samples of a prompt the most frequent answer wins, and its margin is its share minus
the share of the runner-up (as in ScPO, Prasad et al. 2024, where the margin weighs and filters the
pairs). No gold answer is needed for it; `correct` needs one. Open texts can be neither checked nor
voted on, so no filter applies to them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lib import plots, stats
from lib.estimates import NOT_MEASURED
from lib.evaluation import answers, consistency, grade, systems
from lib.evaluation.consistency import TEXT_CHECKERS
from lib.files import content_hash

FILTERS = ("correct", "majority", "all")


def sample(
    system: dict,
    items: list[dict],
    strategies: dict[str, dict],
    vote_temperature: float,
    settings: dict,
) -> None:
    """Generate what is learned (`texts-*`) and what votes (`votes-*`); none is made twice.

    system, settings: as `systems.answer` takes them, without n and temperature. strategies:
    {category: {temperature, samples, votes}}; categories that sample alike share their batches.
    """
    groups: dict[tuple, list[dict]] = {}
    for item in items:
        strategy = strategies[item["category"]]
        groups.setdefault(("texts", strategy["temperature"], strategy["samples"]), []).append(item)
        if strategy["votes"] and item["checker"] not in TEXT_CHECKERS:
            groups.setdefault(("votes", vote_temperature, strategy["votes"]), []).append(item)
    for (kind, temperature, count), group in groups.items():
        named = system | {"name": f"{kind}-{temperature:g}-{count}"}
        systems.answer(named, group, settings | {"n": count, "temperature": temperature})


def read_samples(folder: Path, kind: str) -> dict[str, list[dict]]:
    """{item id: samples in order} of all files of `sample` of a kind, "texts" or "votes"."""
    samples: dict[str, list[dict]] = {}
    for path in sorted(folder.glob(f"generations-{kind}-*.jsonl")):
        samples |= consistency.read_samples(path)
    return samples


def vote(classes: list[int]) -> tuple[int | None, float]:
    """(winning class, margin): share of the most frequent answer minus that of the runner-up.

    Class -1 is no answer and cannot win. A tie has margin 0 and no winner.
    """
    counts = Counter(c for c in classes if c >= 0).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None, 0.0
    return counts[0][0], (counts[0][1] - (counts[1][1] if len(counts) == 2 else 0)) / len(classes)


def candidates(
    items: list[dict],
    texts: dict[str, list[dict]],
    votes: dict[str, list[dict]],
    targets: dict[str, float],
) -> list[dict]:
    """The text to learn of each prompt, with what the filters need to know.

    One sample is taken as it is. Of several the first is taken that has the most frequent answer
    and ended by itself. targets: {category: temperature to train towards}.
    Rows: {id, category, task, instruction, response, target_temperature, cut, tokens, correct
    (None: no checker), majority (whether its answer wins the vote; None: no vote), margin (None:
    no vote), voters}.
    """
    samples = [[*texts[item["id"]], *votes.get(item["id"], [])] for item in items]
    graded = grade.grade_all(items, [[row["text"] for row in rows] for rows in samples])
    by_item = {name: rows.sort_values("sample") for name, rows in graded.groupby("id", sort=False)}
    return [
        _candidate(item, texts[item["id"]], by_item[item["id"]], targets[item["category"]])
        for item in items
    ]


def _candidate(item: dict, texts: list[dict], graded, target: float) -> dict:
    """The row of one prompt. texts: its own; graded: the grades of these and then of its voters."""
    extracted = [None if answer != answer else answer for answer in graded["answer"]]
    place, majority, margin, voters = _elected(item, texts, extracted)
    correct = graded["correct"].tolist()[place]
    return {
        "id": item["id"],
        "category": item["category"],
        "task": item["task"],
        "instruction": item["prompt"],
        "response": texts[place]["text"],
        "target_temperature": target,
        "cut": texts[place]["finish"] != "stop",
        "tokens": texts[place]["tokens"],
        "correct": None if item["checker"] == answers.OPEN else bool(correct),
        "majority": majority,
        "margin": margin,
        "voters": voters,
    }


def _elected(item: dict, texts: list[dict], extracted: list) -> tuple:
    """(place of the text to learn among `texts`, whether its answer wins, margin, voters)."""
    free = item["checker"] in TEXT_CHECKERS
    classes = list(range(len(extracted))) if free else grade.classes_of(item, extracted)
    voting = classes[len(texts) :] or (classes if len(texts) > 1 else [])
    winner, margin = (None, None) if free or not voting else vote(voting)
    agreeing = [n for n in range(len(texts)) if classes[n] == winner] if len(texts) > 1 else []
    place = min(agreeing or range(len(texts)), key=lambda n: (texts[n]["finish"] != "stop", n))
    wins = winner is not None and classes[place] == winner
    return place, None if margin is None else wins, margin, len(voting)


def passes(row: dict, rule: str, least_margin: float = 0.0) -> bool:
    """Whether a candidate is kept by a filter; open texts always are, and an empty text never."""
    if rule not in FILTERS:
        raise ValueError(f"unknown filter {rule!r}; choose from {', '.join(FILTERS)}")
    if not row["response"].strip():
        return False
    if rule == "all" or row["correct"] is None:
        return True
    if row["cut"]:
        return False
    if rule == "correct":
        return row["correct"]
    return bool(row["majority"]) and row["margin"] >= least_margin


def select(
    rows: list[dict], rule: str, wanted: dict[str, int], least_margin: float = 0.0
) -> list[dict]:
    """The first `wanted` rows of each category that a filter keeps, in the order of the prompts."""
    room, kept = dict(wanted), []
    for row in rows:
        if room.get(row["category"], 0) > 0 and passes(row, rule, least_margin):
            room[row["category"]] -= 1
            kept.append(row)
    return kept


def yields(rows: list[dict], least_margin: float = 0.0) -> list[dict]:
    """Per category: prompts, texts that ended, and the share that each filter keeps, as estimates.

    {"category", "n", "ended", "correct", "majority", "all"}; a filter that cannot be applied is
    NOT_MEASURED.
    """
    return [
        {
            "category": category,
            **_yield([r for r in rows if r["category"] == category], least_margin),
        }
        for category in dict.fromkeys(row["category"] for row in rows)
    ]


def yield_of_checked(rows: list[dict], least_margin: float = 0.0) -> dict:
    """The same of all rows that a checker decides, as one; every share is NOT_MEASURED for none."""
    checked = [row for row in rows if row["correct"] is not None]
    if not checked:
        return dict.fromkeys(("ended", *FILTERS), NOT_MEASURED) | {"n": 0}
    return _yield(checked, least_margin)


def _yield(rows: list[dict], least_margin: float) -> dict:
    possible = {
        "correct": any(row["correct"] is not None for row in rows),
        "majority": any(row["margin"] is not None for row in rows),
        "all": True,
    }
    shares = {"ended": stats.proportion(sum(not row["cut"] for row in rows), len(rows))}
    for rule in FILTERS:
        kept = sum(passes(row, rule, least_margin) for row in rows)
        shares[rule] = stats.proportion(kept, len(rows)) if possible[rule] else NOT_MEASURED
    return {"n": len(rows), **shares}


def agreement(rows: list[dict], least_margin: float = 0.0) -> dict:
    """Does the vote tell right from wrong? Shares of right texts that `majority` keeps and refuses.

    {right_if_kept, right_if_refused, gap}; what has no rows is NOT_MEASURED. Candidates without a
    vote are left out.
    """
    right: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        if row["correct"] is not None and row["margin"] is not None:
            right[passes(row, "majority", least_margin)].append(float(row["correct"]))
    kept, refused = (
        stats.proportion(int(sum(part)), len(part)) if part else NOT_MEASURED
        for part in (right[True], right[False])
    )
    both = right[True] and right[False]
    gap = stats.difference(right[True], right[False], unit="share") if both else NOT_MEASURED
    return {"right_if_kept": kept, "right_if_refused": refused, "gap": gap}


def set_table(chosen: list[dict], twins: list[dict], wanted: dict[str, int]) -> list[dict]:
    """A row a category: examples wanted and kept, and the wrong ones among their twins."""
    return [
        {
            "category": category,
            "wanted": count,
            "kept": sum(row["category"] == category for row in chosen),
            "wrong among the unfiltered": sum(
                row["correct"] is False for row in twins if row["category"] == category
            ),
        }
        for category, count in wanted.items()
    ]


def transcripts(items: list[dict], rows: list[dict], most: int) -> list[dict]:
    """Rows for `run.finish(transcripts=...)` of `most` texts to learn, chosen by content hash."""
    by_hash = sorted(items, key=lambda item: content_hash("transcripts", item["id"]))[:most]
    response_of = {row["id"]: {"text": row["response"]} for row in rows}
    given = {item["id"]: response_of[item["id"]] for item in by_hash if item["id"] in response_of}
    return answers.transcripts(
        by_hash, {"text to learn": (given, answers.graded(by_hash, given, progress=False))}
    )


BARS = {  # column of `yields`: colour and label of its bars
    "ended": ("#c9ced6", "ended by itself"),
    "correct": (plots.GREEN, "kept by correct"),
    "majority": (plots.BLUE, "kept by majority"),
}


def figure(table: list[dict]):
    """Bars with intervals for each category: texts that end, and what each filter keeps."""
    fig, axes = plots.figure(height=3.6)
    for place, entry in enumerate(table):
        for offset, (part, (colour, label)) in enumerate(BARS.items()):
            x = place + (offset - 1) * 0.27
            if not entry[part]:
                style = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7}
                axes.text(x, 0.02, "not measured", color=plots.QUIET, **style)
                continue
            value, low, high = (entry[part][key] for key in ("value", "low", "high"))
            axes.bar(x, value, 0.25, color=colour, label=label if place == 0 else None)
            axes.plot([x, x], [low, high], color=plots.INK, linewidth=1)
    names = [f"{entry['category']}\n(n {entry['n']})" for entry in table]
    axes.set_xticks(range(len(table)), names)
    axes.set(ylim=(0, 1.02), ylabel="share of the prompts")
    axes.grid(axis="x", visible=False)
    axes.set_title("What each filter keeps", pad=24)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, borderaxespad=0)
    return fig
