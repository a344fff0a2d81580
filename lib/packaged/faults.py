"""What curation of the packaged data must find: put in on purpose, one entry an injected row.

An entry is {"raw", "kind", "stages", "of"?, "jaccard"?}: the raw row, what is wrong with it, the
curation stages that may take it out for that, and for copies the entry it was made from with their
exact similarity.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from lib.dedup import near_duplicates
from lib.packaged import facts as packaged_facts
from lib.packaged import foreign

NEAR, EXACT, CONTAMINATED = 0.03, 0.02, 0.012  # injected, as shares of the rows
UNFIT = 12  # rows of each kind of unfit answer
NO_RESPONSE, BROKEN = 4, 2  # rows a file
HUGE = 1_200_000  # bytes of the one oversized row
# a copy may also go out with its original
COPIES = ["exact duplicate", "near-duplicate", "contaminated"]
OTHER_SCRIPTS = {"ru", "uk", "el", "zh", "ja", "ko", "ar", "hi"}
ANSWERS = {
    "refusal": "I'm sorry, but as an AI language model I cannot help with that.",
    "repetition": "and then it goes on and on and on again " * 20,
    "control characters": "the word\x07 is\x00 here",
}


def inject(
    sources: dict[str, list], rows: int, evaluation: list, raw_row: Callable, rng: random.Random
):
    """Append entries to the files of `sources`; shares are of `rows`. raw_row: as of a source."""
    clean = {name: list(entries) for name, entries in sources.items()}
    everything = [entry for entries in clean.values() for entry in entries if single(entry["raw"])]

    def put(question: str, answer: str, kind: str, stages: list[str], **more) -> None:
        name = rng.choice(list(sources))
        words = packaged_facts.text_tasks(rng.randrange(10**6))
        item = {"question": question, "answer": answer, "licence": packaged_facts.OWN_LICENCE}
        raw = raw_row(name, rng.randrange(10**6), item, words, rng, alone=True)
        sources[name].append({"raw": raw, "kind": kind, "stages": stages, **more})

    long = [entry for entry in everything if len("".join(entry["text"])) > 250]
    for entry in rng.sample(long, min(len(long), round(NEAR * rows))):
        question, jaccard = vary(*entry["text"], rng)
        put(question, entry["text"][1], "near-duplicate", COPIES, of=entry, jaccard=jaccard)
    for entry in rng.sample(everything, round(EXACT * rows)):
        put(*entry["text"], "exact duplicate", COPIES, of=entry, jaccard=1.0)
    hidden = [
        (asked, gold) for _, asked, gold in evaluation if gold and 8 <= len(asked.split()) <= 200
    ]
    for asked, gold in rng.sample(hidden, min(len(hidden), round(CONTAMINATED * rows))):
        pair = rng.choice(
            (
                (asked, f"The answer is {gold}."),
                (f"Here is an exercise. {asked}", gold),
                (f"  {asked.upper()}\n\nAnswer briefly.", gold),
                ("Give me a question to practise.", asked),
            )
        )
        put(*pair, "contaminated", ["contaminated"])
    for language, asked, said in foreign.FOREIGN:
        script = "other script" if language in OTHER_SCRIPTS else "Latin script"
        put(asked, said, f"foreign, {script}", ["foreign"])
    words = packaged_facts.text_tasks(rng.randrange(10**6))
    for kind, said in ANSWERS.items():
        for _ in range(UNFIT):
            put(next(words)["question"], said, kind, ["unfit"])
    for name, entries in clean.items():
        for kind, stage, raw in broken(entries, ".jsonl" in name, rng):
            sources[name].append({"raw": raw, "kind": kind, "stages": [stage]})
    first = next(iter(sources))
    sources[first].append(
        {
            "raw": {"question": "x" * HUGE, "response": "y"},
            "kind": "oversized row",
            "stages": ["unreadable"],
        }
    )


def vary(question: str, answer: str, rng: random.Random) -> tuple[str, float]:
    """(question with small edits, exact Jaccard to the original, which stays in [0.82, 1))."""
    best = (f"{question} Thank you.", 0.0)
    for _ in range(20):
        varied = question
        for _ in range(rng.randint(1, 3)):
            varied = rng.choice(EDITS)(varied, rng)
        jaccard = near_duplicates.jaccard(f"{question}\n{answer}", f"{varied}\n{answer}")
        if 0.82 <= jaccard < 1:
            return varied, jaccard
        best = max(best, (varied, jaccard if jaccard < 1 else 0.0), key=lambda pair: pair[1])
    return best


def _swap_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if long:
        words[rng.choice(long)] = rng.choice(packaged_facts.WORDS)
    return " ".join(words)


def _drop_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return text
    cut = rng.choice(long)
    return " ".join(words[:cut] + words[cut + 1 :])


EDITS = (
    lambda text, rng: f"Please help me with this. {text}",
    lambda text, rng: f"{text} Thank you.",
    lambda text, rng: text.replace(". ", "! ", 1),
    _swap_word,
    _drop_word,
)


def broken(
    entries: list[dict], lines: bool, rng: random.Random
) -> Iterator[tuple[str, str, object]]:
    """(kind, stage, raw) of rows that cannot be read or used; only files of lines break lines."""
    whole = [entry["raw"] for entry in entries if single(entry["raw"])]
    for raw in rng.sample(whole, min(len(whole), NO_RESPONSE)):
        yield "no response", "unfit", without_answer(raw)
    yield "unknown layout", "unusable", {"prompt_id": rng.randrange(10**6), "payload": "?"}
    for raw in rng.sample(whole, min(len(whole), 2 * BROKEN)) if lines else ():
        line = json.dumps(raw, ensure_ascii=False).encode()
        if rng.random() < 0.5:
            damaged = line.replace(b" ", b" caf\xe9 ", 1 + rng.randrange(3))
            yield "invalid UTF-8", "unreadable", damaged
        else:
            yield "truncated JSON", "unreadable", line[: len(line) // 2]


def single(raw: dict) -> bool:
    """Whether a raw row of a good entry is one question and one answer, nothing before."""
    return len(raw.get("conversations", "--")) == 2 and raw.get("chosen", "").count("Human:") < 2


def without_answer(raw: dict) -> dict:
    """The raw row when the answer was lost: an empty field, or no turn after the question."""
    if "conversations" in raw:
        return {**raw, "conversations": raw["conversations"][:1]}
    if "chosen" in raw:
        return {**raw, "chosen": raw["chosen"].rpartition("\n\nAssistant:")[0] + "\n\nAssistant:"}
    return {key: "" if key in ("response", "output") else value for key, value in raw.items()}
