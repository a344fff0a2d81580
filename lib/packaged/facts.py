"""Facts and small text tasks for the packaged training sources, from Python's own tables and a word
list."""

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
    """Questions on tables that Python carries: HTTP status codes, errors, entities, Unicode, file
    types."""
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
    table = mimetypes.MimeTypes(filenames=()).types_map[
        True
    ]  # the built-in table, not the machine's
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
    """Endless small requests on words, with the one right answer: following an instruction to the
    letter."""
    dice = random.Random(f"text tasks {seed}")
    while True:
        some = dice.sample(WORDS, dice.randint(3, 6))
        listed, number = ", ".join(some), len(some)
        word, other = some[0], dice.choice([w for w in WORDS if w not in some])
        asked, said = dice.choice(
            (
                (f"Put these words in alphabetical order: {listed}.", ", ".join(sorted(some))),
                (
                    f"Write these words in capital letters, one a line: {listed}.",
                    "\n".join(w.upper() for w in some),
                ),
                (
                    f"Turn this list into bullet points: {listed}.",
                    "\n".join(f"- {w}" for w in some),
                ),
                (
                    f"Number the following items: {listed}.",
                    "\n".join(f"{i}. {w}" for i, w in enumerate(some, 1)),
                ),
                (
                    f"Give me a JSON array of these words: {listed}.",
                    "[" + ", ".join(f'"{w}"' for w in some) + "]",
                ),
                (
                    f"How many words are in this list: {listed}?",
                    f"There are {number} words in the list.",
                ),
                (
                    (
                        f"Which of these words is the longest: {listed}? Name the first if several"
                        " are."
                    ),
                    f"The longest is {max(some, key=len)}, with {len(max(some, key=len))} letters.",
                ),
                (
                    f"Replace {word} by {other} in this list: {listed}.",
                    ", ".join([other, *some[1:]]),
                ),
                (
                    (
                        f"Write one sentence that contains {some[0]}, {some[1]} and {some[2]}. Use"
                        " no capital letters."
                    ),
                    f"the {some[0]} and the {some[1]} were found beside the {some[2]}.",
                ),
                (
                    f"Make an acronym of the first letters of: {listed}.",
                    "".join(w[0] for w in some).upper(),
                ),
                (
                    f"Answer with exactly two words taken from this list: {listed}.",
                    f"{some[0]} {some[-1]}",
                ),
                (
                    f"Wrap each of these words in double quotation marks: {listed}.",
                    ", ".join(f'"{w}"' for w in some),
                ),
                (
                    f"Remove {word} from this list and keep the order: {listed}.",
                    ", ".join(some[1:]),
                ),
                (
                    f"List these words and end your answer with the word DONE: {listed}.",
                    f"{listed} DONE",
                ),
            )
        )
        yield {"question": asked, "answer": said, "kind": "text task", "licence": OWN_LICENCE}


def knowledge(seed: int) -> Iterator[dict]:
    """Questions on countries and elements that no evaluation item asks about."""
    for asked, said in knowledge_items.training(seed):
        yield {
            "question": asked,
            "answer": said,
            "kind": "knowledge",
            "licence": knowledge_items.LICENCE,
        }
