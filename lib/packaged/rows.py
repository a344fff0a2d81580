"""Mathematics and reasoning for the packaged training sources: reasoning-gym, with worked answers.

The families are those that are evaluated, the seeds are their own. Every item has question, bare
(the question without our wording), answer, gold, kind (the family) and licence; the answer is
worded as the evaluation prompts ask: short working, then "The answer is X."
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lib import prompts
from lib.packaged import generated

# Families whose items differ in one or two numbers: a quarter as many, or most would be
# near-duplicates
FEW = ("aiw", "course_schedule", "calendar_arithmetic", "gcd", "lcm", "number_format")
BACKGROUND = 500_000  # offset of seeds whose texts only serve to show the wording of a family


def final(answer: str) -> str:
    """The closing sentence that the graders look for."""
    return f"{prompts.ANSWER_MARK} {answer.strip().rstrip('.')}."


def gym(category: str, seed: int, per_family: int) -> Iterator[dict]:
    """Up to `per_family` items of every family of a category, in turn, from training seeds.

    A question that came before is left out: small families repeat themselves.
    """
    import reasoning_gym

    checkers = {"math": "math", "reasoning": "reasoning_gym"}
    start = generated.SEEDS["train"] + seed % 400_000
    sets = [
        (name, reasoning_gym.create_dataset(name, seed=start, size=per_family, **config))
        for name, config in generated.FAMILIES[category]
    ]
    seen: set[str] = set()
    for index in range(per_family):
        for name, dataset in sets:
            if name in FEW and index % 4:
                continue
            entry = dataset[index]
            answer = str(entry["answer"])
            if entry["question"] in seen:
                continue
            seen.add(entry["question"])
            shown = "\n".join(part for part in (working(name, entry), final(answer)) if part)
            question = prompts.render(checkers[category], entry["question"])
            yield {
                "question": question,
                "bare": entry["question"].strip(),
                "answer": shown,
                "gold": answer,
                "kind": name,
                "licence": generated.GYM_LICENCE,
            }


def background(per_family: int = 600) -> Iterator[str]:
    """Questions of every family from yet other seeds: their wording is no contamination."""
    import reasoning_gym

    for families in generated.FAMILIES.values():
        for name, config in families:
            seed = generated.SEEDS["train"] + BACKGROUND
            for entry in reasoning_gym.create_dataset(name, seed=seed, size=per_family, **config):
                yield entry["question"]


def working(name: str, entry: dict) -> str:
    """A short worked solution of a reasoning-gym item, empty for families where we have none."""
    maker = WORKINGS.get(name)
    return maker(entry["metadata"], str(entry["answer"]), entry["question"]) if maker else ""


def _chain(meta: dict, answer: str, question: str) -> str:
    parts = meta["expression"].split()
    total, lines = int(parts[0]), []
    for sign, number in zip(parts[1::2], parts[2::2], strict=True):
        after = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {after}")
        total = after
    return "\n".join(lines)


def _product(meta: dict, answer: str, question: str) -> str:
    a, b = (int(part) for part in meta["expression"].split("*"))
    if min(a, b) < 10:
        return f"{a} x {b} = {a * b}"
    tens, units = b // 10 * 10, b % 10
    return (
        f"{a} x {tens} = {a * tens}\n{a} x {units} = {a * units}\n{a * tens} + {a * units} ="
        f" {a * b}"
    )


def _equation(meta: dict, answer: str, question: str) -> str:
    left, right = meta["equation"].split(" = ")
    known = re.fullmatch(r"(\d+)\*(\w)(?: ([+-]) (\d+))?", left)
    if not known:
        return ""
    factor, name, sign, shift = known.groups()
    rest = int(right) - int(f"{sign}{shift}") if shift else int(right)
    first = (
        f"{factor}*{name} = {right} {'-' if sign == '+' else '+'} {shift} = {rest}\n"
        if shift
        else ""
    )
    return f"{first}{name} = {rest} / {factor} = {answer}"


def _gcd(meta: dict, answer: str, question: str) -> str:
    a, b = sorted(meta["numbers"][:2], reverse=True)
    lines = []
    while b:
        lines.append(f"{a} = {a // b} x {b} + {a % b}")
        a, b = b, a % b
    return "\n".join(lines)


def _lcm(meta: dict, answer: str, question: str) -> str:
    a, b = meta["numbers"][:2]
    shared = a * b // int(answer)
    return (
        f"The greatest common divisor of {a} and {b} is {shared}.\n{a} x {b} / {shared} = {answer}"
    )


def _letters(meta: dict, answer: str, question: str) -> str:
    counted = [(word, word.lower().count(meta["target_letter"].lower())) for word in meta["span"]]
    if sum(count for _, count in counted) != int(answer):
        return ""
    return ", ".join(f"{word}: {count}" for word, count in counted) + "."


def _weekday(meta: dict, answer: str, question: str) -> str:
    days = abs(meta.get("offset_days", 0))
    if meta["task"] != "weekday_offset" or days < 7:
        return ""
    way = "before" if meta["offset_days"] < 0 else "after"
    return (
        f"{days} days are {days // 7} weeks and {days % 7} days, so count {days % 7} days {way} it."
    )


def _needle(meta: dict, answer: str, question: str) -> str:
    said = [part.strip() for part in question.split(". ") if part.strip().startswith(f"{answer} ")]
    return f"{said[0].rstrip('.')}." if said else ""


WORKINGS = {
    "chain_sum": _chain,
    "products": _product,
    "simple_equations": _equation,
    "gcd": _gcd,
    "lcm": _lcm,
    "letter_counting": _letters,
    "calendar_arithmetic": _weekday,
    "needle_haystack": _needle,
}
