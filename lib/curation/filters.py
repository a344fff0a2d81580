"""What a row is about, how hard it is, and whether it is fit: short stated rules, no model.

Rules, not truth: a domain is the highest score of a handful of patterns, a difficulty counts
visible signs of work. Both are meant for balance tables and sampling, and both are printed with
samples by the notebook.
"""

from __future__ import annotations

import re
from itertools import islice

import re2

from lib import domains

DOMAINS = domains.TAGS  # earlier wins a tie
# What a source is made for decides before any pattern does; matched as part of the source's name.
SOURCE_DOMAINS = (
    ("metamath", "math"), ("gsm8k", "math"), ("math_", "math"), ("codealpaca", "code"),
    ("code_alpaca", "code"), ("codegen", "code"), ("humaneval", "code"), ("mbpp", "code"),
    ("instruct_code", "code"),
    ("roleplay", "creative"), ("hh_rlhf", "conversation"), ("hh-rlhf", "conversation"),
    ("sharegpt", "conversation"), ("oasst", "conversation"),
)  # fmt: skip
CATEGORY_DOMAINS = {
    "creative_writing": "creative", "brainstorming": "creative", "classification": "reasoning",
    "cot": "reasoning",
}  # fmt: skip
PATTERNS = {  # by RE2: ten searches over every row, which `re` takes eight times as long for
    "code": re2.compile(
        r"```|\bdef"
        r" \w+\(|#include|</?(?:div|html|body|script)\b|\bSELECT\b.{1,80}\bFROM\b|\bconsole\.log\b|"
        r"(?i:\b(?:python|java|javascript|typescript|c\+\+|c#|sql|html|css|bash|regex|rust|api|json|"
        r"function|algorithm|program|script|code|compil\w+|debug\w*|array|linked list|class"
        r" named)\b)"
    ),
    "math": re2.compile(
        r"\\frac|\\sqrt|\$[^$\n]+\$|\d\s*[-+*/×÷^=]\s*-?\d|"
        r"(?i:\b(?:solve|equation|calculate|compute|how many|how"
        r" much|percent\w*|probability|integral|"
        r"derivative|triangle|polynomial|matrix|divisor|multipl\w+|fraction|prime|average|remainder|arithmetic)\b)"
    ),
    "science": re2.compile(
        r"(?i:\b(?:physics|chemi\w+|biolog\w+|molecul\w+|atom\w*|energy|planets?|species|genes?|genetic\w*|"
        r"dna|protein\w*|cells?|neuron\w*|photosynthesis|evolution|climate|gravity|electr\w+|quantum|bacteria|"
        r"virus\w*|disease\w*|scientific|astronom\w+|geolog\w+|ecosystem\w*|thermodynamic\w*)\b)"
    ),
    "creative": re2.compile(
        r"(?i:\b(?:poem|story|stories|haiku|limerick|lyrics|song|novel|fiction\w*|fairy"
        r" tale|slogan|tagline|"
        r"screenplay|dialogue|imagine|roleplay|rhym\w+|sonnet|metaphor|joke|brainstorm|creative)\b)"
    ),
    "reasoning": re2.compile(
        r"(?i:\b(?:why|explain|compare|contrast|classify|analy[sz]e|infer|deduce|premises?|conclusion|"
        r"logical\w*|true or false|yes or no|which of the following|step by"
        r" step|puzzle|determine|evaluate|"
        r"argument|odd one out|relation)\b)"
    ),
}
STEPS = re.compile(r"(?m)^\s*(?:\d+[.)]|[-*]|step \d+)\s")
CONSTRAINTS = re.compile(
    r"(?i)\b(?:must|at least|at most|exactly|without using|ensure|constraint|only use|no more"
    r" than)\b"
)
LEVELS = ("easy", "medium", "hard")

REFUSAL = re.compile(
    r"(?i)\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b|"
    r"\bi am an? ai language model\b|"
    r"\bi(?:'m| am) (?:sorry|unable)[^.]{0,40}\b(?:cannot|can't|unable to) (?:fulfil+|comply|assist"
    r" with)\b|"
    r"\bi cannot fulfil+ (?:this|your|that) request\b"
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
UNFILLED = re.compile(r"\{\{\s*\w+\s*\}\}")
PLACEHOLDER = re.compile(
    r"(?i)^\W*(?:no ?(?:out|in)put|nan|null|undefined|todo|lorem ipsum.*)\W*$", re.S
)


def domain(source: str, instruction: str, response: str, category: str = "") -> str:
    """One of DOMAINS: the row's category, then the source's purpose, then the most matched pattern.

    A match in the instruction counts three times one in the first 1,000 characters of the response,
    because answers mention everything; each side counts at most five. A score below 3 is
    conversation.
    """
    if category in CATEGORY_DOMAINS:
        return CATEGORY_DOMAINS[category]
    name = source.lower()
    for part, value in SOURCE_DOMAINS:
        if part in name:
            return value
    sides = [(3, instruction[:2000].encode()), (1, response[:1000].encode())]
    scores = {
        label: sum(
            weight * sum(1 for _ in islice(pattern.finditer(text), 5)) for weight, text in sides
        )
        for label, pattern in PATTERNS.items()
    }
    best = max(DOMAINS[:-1], key=lambda label: scores[label])  # max keeps the first of equals
    return best if scores[best] >= 3 else "conversation"


def difficulty(instruction: str, response: str, level: str | int | None = None) -> str:
    """easy, medium or hard. A level stated by the source (1-10, or 'Level 1'-'Level 5') decides.

    Otherwise one point each for: instruction over 40 words; over 120; response over 100 words; over
    250; three or more list items or steps in the response; a code block or LaTeX; a constraint in
    the instruction. 0-1 points are easy, 2-3 medium, 4 and more hard.
    """
    stated = re.search(r"\d+", str(level)) if level not in (None, "") else None
    if stated:
        scale = 5 if "level" in str(level).lower() else 10
        return LEVELS[min(2, max(0, (int(stated.group()) - 1) * 3 // scale))]
    asked, answered = len(instruction.split()), len(response.split())
    points = (asked > 40) + (asked > 120) + (answered > 100) + (answered > 250)
    points += len(STEPS.findall(response)) >= 3
    points += "```" in response or "\\frac" in response or "\\[" in response
    points += bool(CONSTRAINTS.search(instruction))
    return LEVELS[0 if points < 2 else 1 if points < 4 else 2]


def repetition(text: str, words: int = 5) -> float:
    """Share of word runs of this length that repeat an earlier one: 0 fresh text, 1 a loop."""
    tokens = text.split()
    total = len(tokens) - words + 1
    return (
        1 - len(set(zip(*(tokens[i:] for i in range(words)), strict=False))) / total
        if total > 0
        else 0.0
    )


def unfit(row: dict, *, min_chars: int, max_chars: int, max_repetition: float) -> str | None:
    """Why a normalised row is not fit for training, or None. Lengths are characters.

    `min_chars` is for the instruction (a response may be one digit), `max_chars` for the whole row,
    `max_repetition` for responses of 50 words and more.
    """
    instruction, response = row["instruction"], row["response"]
    size = len(instruction) + len(response) + len(row.get("system") or "")
    size += sum(len(turn) for pair in row.get("history") or [] for turn in pair)
    if not instruction:
        return "no instruction"
    if not response:
        return "no response"
    if CONTROL.search(instruction) or CONTROL.search(response):
        return "control characters"
    if len(instruction) < min_chars:
        return "instruction too short"
    if size > max_chars:
        return "too long"
    if PLACEHOLDER.match(response):
        return "placeholder response"
    if row["domain"] != "code" and UNFILLED.search(response):
        return "unfilled template"
    if response == instruction:
        return "response repeats the instruction"
    if REFUSAL.search(response[:300]):
        return "refusal boilerplate"
    if response.count("```") % 2:
        return "truncated code block"
    words = response.split() if len(response) > 200 else []
    # a text has at least as many different runs as different words, less four: counted first, as it
    # is far quicker
    doubtful = len(words) >= 50 and len(set(words)) - 4 < (1 - max_repetition) * (len(words) - 4)
    if doubtful and repetition(response) > max_repetition:
        return "repetition"
    return None
