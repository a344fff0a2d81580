"""A model's own answers as training data: prompts, choice of the text to learn, filters and their
yield.

The vote: of k samples of a prompt the most frequent answer wins, and its margin is its share minus
the share of the runner-up (as in ScPO, Prasad et al. 2024, where the margin weighs and filters the
pairs). No gold answer is needed for it; `correct` needs one. Open texts can be neither checked nor
voted on, so no filter applies to them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lib.evaluation import answers, grade, tasks
from lib.evaluation.consistency import TEXT_CHECKERS
from lib.files import content_hash, read_jsonl

FILTERS = ("correct", "majority", "all")
HELD_OUT = (
    "validation",
    "calibration",
    "threshold",
)  # splits of 00_curate that nothing may be trained on
REFUSALS = ("repeats a test item", "near-duplicate of a test item", "in a held-out split",
            "near-duplicate of another prompt", "own answer fails its tests")  # fmt: skip


def pool(where: str, wanted: dict[str, int], seed: int, curated: Path, threshold: float = 0.8):
    """Training prompts, and how many were refused for which reason.

    Args:
        where: "packaged" or a data folder; wanted: {category: prompts}; curated: artifacts of
        00_curate.
        threshold: Jaccard similarity of character 3-grams from which two questions are
        near-duplicates.
    Returns (items of `tasks.load_items`, table [{category, available, **{reason: count}, taken}]).
    """
    from lib.curation import decontaminate
    from lib.dedup import near_duplicates
    from lib.packaged import rows as packaged_rows

    tests = list(tasks.evaluation_texts(where))
    clean = list(packaged_rows.background())
    index = decontaminate.Index(tests, ignore=clean)
    held_out = [
        (f"{split}/{row['id']}", row["instruction"], None)
        for split in HELD_OUT
        for row in read_jsonl(curated / f"{split}.jsonl")
    ]
    reserved = decontaminate.Index(held_out, ignore=clean)
    hashes = {content_hash(question) for _, question, _ in held_out}
    chosen, table = [], []
    for category, count in wanted.items():
        found = tasks.load_items(where, [category], 3 * count + 60, seed, "train") if count else []
        reasons: dict[str, str] = {}
        for item in found:
            question = item["meta"]["question"]
            if index.match(f"{question}\n{item['gold'] or ''}", question):
                reasons[item["id"]] = REFUSALS[0]
            elif content_hash(item["prompt"]) in hashes or reserved.match(question, question):
                reasons[item["id"]] = REFUSALS[2]
        texts = [(f"test {name}", question) for name, question, _ in tests]
        texts += [(item["id"], item["meta"]["question"]) for item in found]
        drops, _ = near_duplicates.find(texts, threshold=threshold)
        for row, keeper in zip(drops["row"], drops["keeper"], strict=True):
            if not row.startswith("test ") and row not in reasons:
                reasons[row] = REFUSALS[1] if keeper.startswith("test ") else REFUSALS[3]
        left = [item for item in found if item["id"] not in reasons]
        taken = []
        while (
            left and len(taken) < count
        ):  # a function whose own code fails its tests teaches nothing
            some, left = left[: count - len(taken)], left[count - len(taken) :]
            broken = _broken(some) if category == "code" else set()
            reasons |= dict.fromkeys(broken, REFUSALS[4])
            taken += [item for item in some if item["id"] not in broken]
        tally = Counter(reasons.values())
        table.append(
            {
                "category": category,
                "available": len(found),
                **{name: tally[name] for name in REFUSALS},
                "taken": len(taken),
            }
        )
        chosen += taken
    return chosen, table


def _broken(items: list[dict]) -> set[str]:
    graded = grade.grade_all(
        items, [[f"```python\n{item['gold']}\n```"] for item in items], progress=False
    )
    return {
        name for name, correct in zip(graded["id"], graded["correct"], strict=True) if not correct
    }


def sample(
    items: list[dict],
    strategies: dict[str, dict],
    loaded: tuple,
    *,
    vote_temperature: float,
    **settings,
) -> None:
    """Generate what is learned (`texts-*`) and what votes (`votes-*`); finished samples are kept,
    none is made twice.

    strategies: {category: {temperature, samples, votes}}. Categories that sample alike share their
    batches.
    settings: those of `answers.generate` (folder, model_key, seed, limits, batch_size).
    """
    groups: dict[tuple, list[dict]] = {}
    for item in items:
        own = strategies[item["category"]]
        groups.setdefault(("texts", own["temperature"], own["samples"]), []).append(item)
        if own["votes"] and item["checker"] not in TEXT_CHECKERS:
            groups.setdefault(("votes", vote_temperature, own["votes"]), []).append(item)
    for (kind, heat, count), group in groups.items():
        answers.generate(
            group, loaded, system=f"{kind}-{heat:g}-{count}", n=count, temperature=heat, **settings
        )


def read_samples(folder: Path, kind: str) -> dict[str, list[dict]]:
    """{item id: samples in order} of all files of `sample` of a kind, "texts" or "votes"."""
    from lib.evaluation import consistency

    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob(f"generations-{kind}-*.jsonl")):
        found |= consistency.read_samples(path)
    return found


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
    and ended by itself.
    Rows: {id, category, task, instruction, response, target_temperature, cut, tokens, correct
    (None: no checker),
        majority (whether its answer wins the vote; None: no vote), margin (None: no vote), voters}.
    """
    known = {item["id"]: (texts[item["id"]], votes.get(item["id"], [])) for item in items}
    graded = grade.grade_all(
        items, [[row["text"] for part in known[item["id"]] for row in part] for item in items]
    )
    by_item = {name: rows.sort_values("sample") for name, rows in graded.groupby("id", sort=False)}
    rows = []
    for item in items:
        own, frame = known[item["id"]][0], by_item[item["id"]]
        found = [None if value != value else value for value in frame["answer"]]
        free = item["checker"] in TEXT_CHECKERS
        classes = list(range(len(found))) if free else grade.classes_of(item, found)
        asked = classes[len(own) :] or (classes if len(own) > 1 else [])
        winner, margin = (None, None) if free or not asked else vote(asked)
        agreeing = [n for n in range(len(own)) if classes[n] == winner] if len(own) > 1 else []
        pick = min(agreeing or range(len(own)), key=lambda n: (own[n]["finish"] != "stop", n))
        correct = frame["correct"].tolist()[pick]
        rows.append(
            {
                "id": item["id"],
                "category": item["category"],
                "task": item["task"],
                "instruction": item["prompt"],
                "response": own[pick]["text"],
                "target_temperature": targets[item["category"]],
                "cut": own[pick]["finish"] != "stop",
                "tokens": own[pick]["tokens"],
                "correct": None if item["checker"] == answers.OPEN else bool(correct),
                "majority": (
                    None if margin is None else winner is not None and classes[pick] == winner
                ),
                "margin": margin,
                "voters": len(asked),
            }
        )
    return rows


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
    None.
    """
    from lib import stats

    table = []
    for category in dict.fromkeys(row["category"] for row in rows):
        mine = [row for row in rows if row["category"] == category]
        possible = {
            "correct": any(row["correct"] is not None for row in mine),
            "majority": any(row["margin"] is not None for row in mine),
            "all": True,
        }
        table.append(
            {
                "category": category,
                "n": len(mine),
                "ended": stats.proportion(sum(not row["cut"] for row in mine), len(mine)),
                **{
                    rule: (
                        stats.proportion(
                            sum(passes(row, rule, least_margin) for row in mine), len(mine)
                        )
                        if possible[rule]
                        else None
                    )
                    for rule in FILTERS
                },
            }
        )
    return table


def repeats(rows: list[dict], where: str) -> list[tuple[str, str]]:
    """(row id, evaluation item) for each row whose prompt or response repeats a test item, of the
    written file.

    Independent of how the rows came about: content hashes of all test questions, and the rule of
    decontamination.
    """
    from lib.curation import decontaminate
    from lib.packaged import rows as packaged_rows

    tests = list(tasks.evaluation_texts(where))
    index = decontaminate.Index(tests, ignore=list(packaged_rows.background()))
    hashes = {content_hash(question): name for name, question, _ in tests}
    found = []
    for row in rows:
        hits = [
            name
            for name, _ in index.match(
                f"{row['instruction']}\n{row['response']}", row["instruction"]
            )
        ]
        hits += [hashes[key]] if (key := content_hash(row["instruction"])) in hashes else []
        found += [(row["id"], name) for name in hits]
    return found


def figure(table: list[dict]):
    """Shares of the texts that end by themselves and that a filter keeps, bars with intervals for
    each category."""
    from lib import plots

    parts = {
        "ended": ("#c9ced6", "ended by itself"),
        "correct": (plots.GREEN, "kept by correct"),
        "majority": (plots.BLUE, "kept by majority"),
    }
    fig, axes = plots.figure(height=3.6)
    for place, entry in enumerate(table):
        for offset, (part, (colour, label)) in enumerate(parts.items()):
            at = place + (offset - 1) * 0.27
            if entry[part] is None:
                style = {
                    "rotation": 90,
                    "ha": "center",
                    "va": "bottom",
                    "fontsize": 7,
                    "color": plots.QUIET,
                }
                axes.text(at, 0.02, "not measured", **style)
                continue
            value, low, high = (entry[part][key] for key in ("value", "low", "high"))
            axes.bar(at, value, 0.25, color=colour, label=label if place == 0 else None)
            axes.plot([at, at], [low, high], color=plots.INK, linewidth=1)
    axes.set_xticks(
        range(len(table)), [f"{entry['category']}\n(n {entry['n']})" for entry in table]
    )
    axes.set(ylim=(0, 1.02), ylabel="share of the prompts")
    axes.grid(axis="x", visible=False)
    axes.set_title("What each filter keeps", pad=24)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, borderaxespad=0)
    return fig


def agreement(rows: list[dict], least_margin: float = 0.0) -> dict:
    """Does the vote tell right from wrong? Shares of right texts among those `majority` keeps and
    refuses, and the gap.

    {right_if_kept, right_if_refused, gap}; what has no rows is None. Candidates without a vote are
    left out.
    """
    from lib import stats

    rows = [row for row in rows if row["correct"] is not None and row["margin"] is not None]
    parts = {True: [], False: []}
    for row in rows:
        parts[passes(row, "majority", least_margin)].append(float(row["correct"]))
    kept, refused = (
        stats.proportion(int(sum(p)), len(p)) if p else None for p in (parts[True], parts[False])
    )
    both = parts[True] and parts[False]
    gap = stats.difference(parts[True], parts[False], unit="share") if both else None
    return {"right_if_kept": kept, "right_if_refused": refused, "gap": gap}
