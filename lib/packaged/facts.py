"""Facts and small text tasks for the packaged training sources: Python's tables, a word list."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lib.packaged import knowledge as knowledge_items

OWN_LICENCE = "MIT (this project)"
PYTHON_LICENCE = "PSF-2.0 (python)"
_WORD_LIST = (
    "apple river window garden silver paper mountain bottle candle forest pencil marble basket"
    " lantern harbour meadow copper thunder blanket orange ladder feather mirror pebble violin"
    " saddle cabin lemon anchor bridge carpet dolphin engine falcon guitar hammer island jacket"
    " kettle lizard magnet needle oyster parrot quartz ribbon spider tunnel umbrella valley walnut"
    " yogurt zipper bakery cactus desert ember fiddle glacier helmet "
)
WORDS = _WORD_LIST.split()


def facts() -> list[dict]:
    """Questions on tables that Python carries: HTTP codes, errors, entities, file types."""
    import errno
    import html.entities
    import http
    import mimetypes
    import os
    import unicodedata

    pairs = [
        (f"What does the HTTP status code {s.value} mean?", f"It means {s.phrase}. {s.description}")
        for s in http.HTTPStatus
    ]
    pairs += [
        (
            f"What does the system error {name} stand for?",
            f"{name} stands for: {os.strerror(number)}.",
        )
        for number, name in sorted(errno.errorcode.items())
    ]
    for name, number in sorted(html.entities.name2codepoint.items()):
        said = unicodedata.name(chr(number), "").lower()
        asked = f"Which character does the HTML entity &{name}; show?"
        pairs.append((asked, f"It shows {chr(number)}, the {said}."))
    # the built-in table, not the machine's
    table = mimetypes.MimeTypes(filenames=()).types_map[True]
    pairs += [
        (
            f"Which media type belongs to files that end in {end}?",
            f"Files ending in {end} are {kind}.",
        )
        for end, kind in sorted(table.items())
    ]
    rest = {"kind": "fact", "licence": PYTHON_LICENCE}
    return [{"question": asked, "answer": said, **rest} for asked, said in pairs]


def text_tasks(seed: int) -> Iterator[dict]:
    """Endless small requests on words with the one right answer: to follow to the letter."""
    rng = random.Random(f"text tasks {seed}")
    while True:
        chosen = rng.sample(WORDS, rng.randint(3, 6))
        other = rng.choice([word for word in WORDS if word not in chosen])
        requests = (*_forms(chosen), *_questions(chosen, other), *_orders(chosen))
        asked, said = rng.choice(requests)
        yield {"question": asked, "answer": said, "kind": "text task", "licence": OWN_LICENCE}


def _forms(words: list[str]) -> list[tuple[str, str]]:
    """(request, answer) for putting words into another form."""
    listed = ", ".join(words)
    quoted = ", ".join(f'"{word}"' for word in words)
    numbered = "\n".join(f"{place}. {word}" for place, word in enumerate(words, 1))
    capitals = "\n".join(word.upper() for word in words)
    bullets = "\n".join(f"- {word}" for word in words)
    return [
        (f"Put these words in alphabetical order: {listed}.", ", ".join(sorted(words))),
        (f"Write these words in capital letters, one a line: {listed}.", capitals),
        (f"Turn this list into bullet points: {listed}.", bullets),
        (f"Number the following items: {listed}.", numbered),
        (f"Give me a JSON array of these words: {listed}.", f"[{quoted}]"),
    ]


def _questions(words: list[str], other: str) -> list[tuple[str, str]]:
    """(request, answer) about what words a list holds, and with another word in it."""
    listed, longest = ", ".join(words), max(words, key=len)
    question = f"Which of these words is the longest: {listed}? Name the first if several are."
    return [
        (
            f"How many words are in this list: {listed}?",
            f"There are {len(words)} words in the list.",
        ),
        (question, f"The longest is {longest}, with {len(longest)} letters."),
        (f"Replace {words[0]} by {other} in this list: {listed}.", ", ".join([other, *words[1:]])),
    ]


def _orders(words: list[str]) -> list[tuple[str, str]]:
    """(request, answer) for orders that leave one way to write the answer."""
    listed, quoted = ", ".join(words), ", ".join(f'"{word}"' for word in words)
    first, second, third = words[:3]
    sentence = (
        f"Write one sentence that contains {first}, {second} and {third}. Use no capital letters."
    )
    return [
        (sentence, f"the {first} and the {second} were found beside the {third}."),
        (
            f"Make an acronym of the first letters of: {listed}.",
            "".join(word[0] for word in words).upper(),
        ),
        (
            f"Answer with exactly two words taken from this list: {listed}.",
            f"{first} {words[-1]}",
        ),
        (f"Wrap each of these words in double quotation marks: {listed}.", quoted),
        (f"Remove {first} from this list and keep the order: {listed}.", ", ".join(words[1:])),
        (
            f"List these words and end your answer with the word DONE: {listed}.",
            f"{listed} DONE",
        ),
    ]


def knowledge(seed: int) -> Iterator[dict]:
    """Questions on countries and elements that no evaluation item asks about."""
    for asked, said in knowledge_items.training(seed):
        yield {
            "question": asked,
            "answer": said,
            "kind": "knowledge",
            "licence": knowledge_items.LICENCE,
        }
