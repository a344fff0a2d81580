"""The final answer in a model's text, by named extractors, and its canonical form.

`marked` takes what follows the last explicit mark: "The answer is", "####" or a boxed expression.
The fallbacks are named for what they take: `last` (last number, expression, closed-set word or
line), `first_letter` (first letter that stands alone), `option_text` (the one option that is
quoted). Which one spoke is reported with every grade, so that a gain in format is not sold as a
gain in skill.
"""

from __future__ import annotations

import re
from fractions import Fraction

MARK = re.compile(r"(?:answer\s*(?:is|:)|answer\s+should\s+be|####)\s*:?\s*", re.IGNORECASE)
NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}|\s*/\s*\d+)?(?!\w)|(?<![\w.])[-+]?\.\d+"
)
CLOSED = ({"yes", "no"}, {"true", "false"}, {"valid", "invalid"})
SENTENCE = re.compile(r"\.\s+(?=[A-Z])")
MAX_CHARS = 20_000  # of a text, from its end: no final answer stands before that


def boxed(text: str) -> tuple[str, int] | None:
    r"""(content, position) of the last \boxed{...} or \fbox{...} with balanced braces."""
    for opening in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for position in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[opening.end() : position], opening.start()
    return None


def marked(text: str) -> str | None:
    """What follows the last mark on its line, or a boxed expression from that line on."""
    text = text[-MAX_CHARS:]
    marks = list(MARK.finditer(text))
    box = boxed(text)
    if box and (not marks or box[1] >= marks[-1].start()):
        return box[0].strip() or None
    for mark in reversed(marks):
        line = text[mark.end() :].lstrip().split("\n", 1)[0]
        cleaned = clean(line)
        if cleaned and SENTENCE.split(cleaned)[0] != "X":  # a bare X repeats the prompt's pattern
            return cleaned
    return None


def clean(line: str) -> str:
    """Without Markdown emphasis, surrounding quotes, and the full stop at the end."""
    line = line.strip().strip("*_` ").strip()
    line = re.sub(r"[.\s*_`]+$", "", line)
    if len(line) > 1 and line[0] in "\"'“" and line[-1] in "\"'”":
        line = line[1:-1].strip()
    return line


def last_line(text: str) -> str | None:
    lines = [line for line in text.splitlines() if clean(line)]
    return clean(lines[-1]) if lines else None


# -- numbers --


def number(text: str | None) -> Fraction | None:
    """A plain number as a fraction, else None.

    A sign, thousands commas, decimals, a/b, $ and % are read.
    """
    if text is None or len(text) > 200:
        return None
    bare = re.sub(
        r"\\(?:text|mathrm)\{[^{}]*\}|\\[,!; ]|[$£€%]|\\%|\^\\circ|°", "", text.replace("\\$", "")
    ).strip()
    latex = re.fullmatch(r"([-+]?)\s*\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}", bare)
    if latex:
        bare = f"{latex[1]}{latex[2]}/{latex[3]}"
    bare = re.sub(r"(?<=\d),(?=\d{3}\b)", "", bare).replace("−", "-")
    if not re.fullmatch(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}|\s*/\s*-?\d+)?", bare):
        return None
    top, _, bottom = bare.partition("/")
    try:
        return Fraction(top.strip()) / Fraction(bottom.strip() or 1)
    except (ValueError, ZeroDivisionError):
        return None


def expression(text: str, equation: bool = False) -> str:
    """The mathematics of a marked answer: after the last `=`, or the first number among words.

    `equation`: the gold answer is an equation, so the `=` stays.
    """
    text = SENTENCE.split(text.strip())[0].strip("$").strip()
    text = re.sub(r"^\\[\[(]|\\[\])]$", "", text).strip()
    parts = re.split(r"(?<![<>!\\])=", text)
    if len(parts) > 1 and parts[-1].strip() and not equation:
        text = parts[-1].strip().strip("$").strip()
    if number(text) is not None:
        return text
    without_commands = re.sub(r"\\(?:text|begin|end)\{[^{}]*\}|\\[A-Za-z]+", "", text)
    if re.search(r"[A-Za-z]{2,}", without_commands):
        maths = re.search(r"\$([^$]+)\$", text)
        if maths:
            return maths[1].strip()
        match = NUMBER.search(text)
        if match:
            return match[0]
    return text


def _last(matches):
    everything = list(matches)
    return everything[-1] if everything else None


def last_expression(text: str) -> str | None:
    """The last number, or the last $...$ if it ends later."""
    text = text[-MAX_CHARS:]
    match = _last(NUMBER.finditer(text))
    maths = _last(re.finditer(r"\$([^$\n]{1,200})\$", text))
    if maths and (not match or maths.end() > match.end()):
        return expression(maths[1])
    return match[0] if match else None


# -- choices and words --


def marked_letter(text: str, letters: str, options: list[str]) -> str | None:
    """The letter after the last mark; or the option whose text is quoted there."""
    answer = marked(text)
    if answer is None:
        return None
    match = re.match(rf"\W*(?:option\s+)?\(?([{letters}])(?![A-Za-z'’])", answer)
    if match:
        return match[1]
    for letter, option in zip(letters, options, strict=False):
        if normal(answer) == normal(option):
            return letter
    lower = re.fullmatch(rf"\W*([{letters.lower()}])\W*", answer)
    return lower[1].upper() if lower else None


def first_letter(text: str, letters: str) -> str | None:
    """The first option letter that stands alone: "(B)", "B.", "B)", "B:", "**B**", a whole line."""
    match = re.search(rf"\(([{letters}])\)|(?<![\w'’])([{letters}])(?=[.):*]|\s*(?:\n|\Z))", text)
    return (match[1] or match[2]) if match else None


def option_text(text: str, letters: str, options: list[str]) -> str | None:
    """The letter of the one option whose wording (two characters or more) is in the text."""
    quoted = [
        letter
        for letter, option in zip(letters, options, strict=False)
        if len(option.strip()) > 1 and re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text)
    ]
    return quoted[0] if len(quoted) == 1 else None


def last_word(text: str, words: set[str]) -> str | None:
    """The last of `words` in the text, lower-cased."""
    matches = re.findall(r"\b(" + "|".join(sorted(words)) + r")\b", text[-MAX_CHARS:].lower())
    return matches[-1] if matches else None


def normal(text: str) -> str:
    """Lower case, spaces folded, outer punctuation and quotes dropped: how texts are compared."""
    return re.sub(r"\s+", " ", text).strip().strip("\"'`*.,;:!?“”‘’ ").lower()
