"""Is an answer right, and which answers are the same answer?

Nothing here needs a model: texts come from the generation store and can be graded again at any
time. No text makes these functions raise.
"""

from __future__ import annotations

import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from lib import prompts
from lib.evaluation import code_check, constraints, extract, math_worker
from lib.packaged import generated as generated_items
from lib.sandbox import sandbox

# verifier score from which an answer counts as right; partial credit does not
REASONING_GYM_PASS = 1.0
# explicit mark; or the checker's fallback (last, first_letter, option_text) alone
EXTRACTORS = ("marked", "loose")


def grade(item: dict, text: str, extractor: str | None = None) -> dict:
    """Grade one text: {"correct", "answer", "extractor", "reason"}.

    extractor: None reads an explicit mark first and falls back; one of `EXTRACTORS` uses that one
    alone, to see how much of a score is format. Code, constraints and open items have one reading
    and ignore it.

    correct is None for open items (a judge's business) and False where no answer could be read.
    answer is the canonical extracted answer, or None; for code a fingerprint of its behaviour on
    the tests' inputs. extractor names what found the answer ("marked", "last", "first_letter",
    "fenced", "bare", "whole", "none").
    """
    if item.get("checker") not in _CHECKERS:
        raise ValueError(f"Unknown checker {item.get('checker')!r}; known: {', '.join(_CHECKERS)}.")
    if extractor not in (None, *EXTRACTORS):
        raise ValueError(f"Unknown extractor {extractor!r}; known: {', '.join(EXTRACTORS)}.")
    return _CHECKERS[item["checker"]](item, text if isinstance(text, str) else "", extractor)


def answer_classes(item: dict, texts: list[str]) -> list[int]:
    """Equivalence class of each text's answer, numbered by first appearance.

    -1 where no answer could be read. Unreadable answers share -1, which never counts as agreement:
    compare classes with `stats` functions that know.
    """
    return classes_of(item, [grade(item, text)["answer"] for text in texts])


def classes_of(item: dict, answers: list[str | None]) -> list[int]:
    """`answer_classes` from answers already extracted by `grade`, so that no code runs twice."""
    mathematical = item["checker"] == "math"
    representatives: list[str] = []
    classes = []
    for answer in answers:
        if answer is None:
            classes.append(-1)
            continue
        for index, known in enumerate(representatives):
            if answer == known or (mathematical and _same_math(known, answer)):
                classes.append(index)
                break
        else:
            representatives.append(answer)
            classes.append(len(representatives) - 1)
    return classes


def grade_all(
    items: list[dict],
    texts_per_item: list[list[str]],
    extractor: str | None = None,
    progress: bool = True,
):
    """Grade every text of every item, code in parallel sandboxes (at most one for each CPU).

    Returns a DataFrame with a row for each text: id, category, task, sample, correct, answer,
    extractor, reason.
    """
    import pandas as pd
    from tqdm import tqdm

    if len(items) != len(texts_per_item):
        raise ValueError(
            f"{len(items)} items but {len(texts_per_item)} lists of texts; they must correspond."
        )
    pairs = zip(items, texts_per_item, strict=True)
    jobs = [(item, sample, text) for item, texts in pairs for sample, text in enumerate(texts)]
    with ThreadPoolExecutor(max_workers=max(1, min(os.cpu_count() or 1, len(jobs)))) as pool:
        graded = pool.map(lambda job: grade(job[0], job[2], extractor), jobs)
        plain = {"file": sys.stdout, "mininterval": 5, "ascii": True, "disable": not progress}
        bar = tqdm(graded, "grade", len(jobs), **plain)
        rows = [
            {key: item[key] for key in ("id", "category", "task")} | {"sample": sample, **result}
            for (item, sample, _), result in zip(jobs, bar, strict=True)
        ]
    columns = ["id", "category", "task", "sample", "correct", "answer", "extractor", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _result(correct: bool | None, answer: str | None, extractor: str, reason: str = "") -> dict:
    return {"correct": correct, "answer": answer, "extractor": extractor, "reason": reason}


def _nothing(what: str) -> dict:
    return _result(False, None, "none", f"no {what} found")


# the checkers: (item, text, extractor or None) -> result


def _math(item: dict, text: str, only: str | None) -> dict:
    answer, extractor, gold = None, "marked", gold_answer(item["gold"])
    if only != "loose" and (answer := extract.marked(text)):
        answer = extract.expression(answer, equation="=" in gold)
        answer = None if len(answer) > 200 else answer
    if not answer and only != "marked":
        answer, extractor = extract.last_expression(text), "last"
    if not answer:
        return _nothing("answer")
    value = extract.number(answer)
    answer = str(value) if value is not None else answer
    correct = _same_math(gold, answer)
    return _result(correct, answer, extractor, "" if correct else "differs from the gold answer")


def gold_answer(gold: str) -> str:
    """The final answer in a gold text: after GSM8K's ####, in MATH's box, or the text itself."""
    if "####" in gold:
        return gold.rsplit("####", 1)[1].strip()
    box = extract.boxed(gold)
    return box[0].strip() if box else gold.strip()


def _same_math(gold: str, answer: str) -> bool:
    first, second = extract.number(gold), extract.number(answer)
    if first is not None and second is not None:
        return first == second
    return gold == answer or math_worker.equal(gold, answer)


def _choice(item: dict, text: str, only: str | None) -> dict:
    options = item["meta"].get("options", [])
    letters = prompts.LETTERS[: len(options) or 4]
    answer, extractor = None, "marked"
    if only != "loose":
        answer = extract.marked_letter(text, letters, options)
    if answer is None and only != "marked":
        answer, extractor = extract.first_letter(text, letters), "first_letter"
        if answer is None:
            answer, extractor = extract.option_text(text, letters, options), "option_text"
    if answer is None:
        return _nothing("letter")
    correct = answer == item["gold"]
    return _result(correct, answer, extractor, "" if correct else f"gold is {item['gold']}")


def _candidate(item: dict, text: str, only: str | None) -> tuple[str | None, str]:
    """The answer text of an item whose gold is a word, a number or a short phrase."""
    gold = extract.normal(item["gold"])
    words = next((words for words in extract.CLOSED if gold in words), None)
    answer = None if only == "loose" else extract.marked(text)
    if answer is not None:
        first = extract.normal((answer.split() or [""])[0])
        return (first if words and first in words else answer), "marked"
    if only == "marked":
        return None, "none"
    if words:
        return extract.last_word(text, words), "last"
    if extract.number(item["gold"]) is not None:
        return extract.last_expression(text), "last"
    line = extract.last_line(text)
    echo = line and extract.MARK.search(line)  # of the form that was asked for: no answer
    return (None if echo else line), "last"


def _exact(item: dict, text: str, only: str | None) -> dict:
    answer, extractor = _candidate(item, text, only)
    if answer is None:
        return _nothing("answer")
    answer, gold = extract.normal(answer)[:500], extract.normal(item["gold"])
    reason = "" if answer == gold else "differs from the gold answer"
    return _result(answer == gold, answer, extractor, reason)


def _reasoning_gym(item: dict, text: str, only: str | None) -> dict:
    answer, extractor = _candidate(item, text, only)
    if answer is None:
        return _nothing("answer")
    answer, gold = answer[:500], item["gold"]
    value = extract.number(extract.expression(answer))
    if value is not None and extract.number(gold) is not None and "/" not in gold:
        # 1.30e+02 and 130 are one answer
        answer = str(value) if value.denominator == 1 else repr(float(value))
    if extract.normal(answer) == extract.normal(gold):
        # verifiers differ in what they forgive; case, quotes and a full stop are forgiven for all
        answer = gold
    shown = extract.normal(answer)
    try:
        score = generated_items.verify(item["meta"], answer)
    except Exception as error:  # a verifier's own bug on odd input makes no right answer
        return _result(False, shown, extractor, f"the verifier raised {type(error).__name__}")
    correct = score >= REASONING_GYM_PASS
    return _result(correct, shown, extractor, "" if correct else f"verifier score {score:.2f}")


def _constraints(item: dict, text: str, only: str | None) -> dict:
    if not text.strip():
        return _nothing("text")
    failed = constraints.failed(item["meta"]["instruction_id_list"], item["meta"]["kwargs"], text)
    reason = f"fails {', '.join(failed)}" if failed else ""
    return _result(not failed, extract.normal(text), "whole", reason)


def _open(item: dict, text: str, only: str | None) -> dict:
    answer = extract.normal(text)
    return _result(None, answer, "whole") if answer else _nothing("text") | {"correct": None}


def _code(item: dict, text: str, only: str | None) -> dict:
    tests, watched = code_check.tests(item)
    names = [item["meta"]["entry_point"]] if item["meta"].get("entry_point") else watched
    code, extractor = code_check.extract_code(text, names)
    if code is None:
        return _nothing("code")
    solution = code_check.program(item, code)
    if solution is None:
        return _result(False, None, extractor, "the code does not compile")
    passed, reason, fingerprint = _run_tests(solution, tuple(tests), tuple(watched))
    return _result(passed, fingerprint, extractor, reason)


@lru_cache(maxsize=20_000)
def _run_tests(
    solution: str, tests: tuple[str, ...], watched: tuple[str, ...]
) -> tuple[bool, str, str | None]:
    """(passed, reason, fingerprint of the behaviour or None where no input yields a value)."""
    result = sandbox.run_tests(solution, list(tests), list(watched))
    calls = [call for check in result["checks"] for call in check["calls"]]
    if all(call.startswith("!") for call in calls):
        return result["passed"], result["reason"], None
    outcomes = [[check["passed"], check["calls"], check["error"]] for check in result["checks"]]
    if result["reason"] in ("cpu", "timeout", "memory", "killed"):
        outcomes.append(["ended by", result["reason"]])
    return result["passed"], result["reason"], f"{zlib.crc32(repr(outcomes).encode()):08x}"


_CHECKERS = {
    "math": _math,
    "choice": _choice,
    "exact": _exact,
    "reasoning_gym": _reasoning_gym,
    "constraints": _constraints,
    "open": _open,
    "code": _code,
}
