"""A corpus for timing curation: deterministic, of any size, made of real sentences, with known
near-duplicates.

    python tests/bench/dedup_corpus.py out.jsonl [--documents 640637] [--data packaged|FOLDER]
    [--layout text|alpaca]

Documents are sentences of the training rows of `data`, drawn at random until a length drawn from a
log-normal distribution (mean 1.4 KB) is reached. One in ten is an edited copy of an earlier
document (words replaced, dropped and added, text put before or behind it, the end cut off), aimed
at Jaccard similarities from 0.62 to 0.99; one in fifty is an exact copy. Memory does not grow with
the number of documents.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

NEAR, EXACT = 0.10, 0.02  # shares of edited and exact copies
MEAN_CHARS, SPREAD = 1400, 0.75  # of the log-normal lengths
SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n+")


def sentences(data: str = "packaged", seed: int = 1) -> list[str]:
    """Distinct sentences of 20 to 400 characters of the training rows of `data`, in the order of
    the files."""
    from lib.curation import normalise, sources
    from lib.evaluation import tasks
    from lib.packaged import training_files

    with tempfile.TemporaryDirectory() as folder:
        if data == "packaged":
            training_files.build(Path(folder), seed, 5000, list(tasks.evaluation_texts("packaged")))
        found: dict[str, None] = {}
        for source in sources.find([], folder if data == "packaged" else data):
            for _, row, _ in sources.read(source):
                try:
                    made = normalise.normalise(row, source["name"], "") if row else []
                except normalise.Unusable:
                    continue
                for part in made:
                    for text in (part["instruction"], part["response"]):
                        pieces = SENTENCE.split(text) if "```" not in text else []
                        found.update((piece, None) for piece in pieces if 20 <= len(piece) <= 400)
    return list(found)


def edited(dice: random.Random, text: str, wanted: float, words: list[str]) -> str:
    """A copy of a text, changed so much that its Jaccard similarity is about `wanted` (measured, it
    scatters)."""
    kind = dice.random()
    if kind < 0.15:  # new text before or behind
        more, size = [], len(text) * (1 - wanted) / wanted * 1.3
        while size > 0:
            more.append(dice.choice(words))
            size -= len(more[-1]) + 1
        return " ".join([*more, text] if dice.random() < 0.5 else [text, *more])
    if kind < 0.25:  # the end is missing
        return text[: max(30, int(len(text) * (wanted + (1 - wanted) * 0.15)))]
    share, out = (1 - wanted) / (1 + wanted) * 0.9, []
    for word in text.split(" "):
        chance = dice.random()
        if chance < 0.7 * share:
            out.append(dice.choice(words))
        elif chance >= 0.85 * share:
            out.append(word)
            if chance < share:
                out.append(dice.choice(words))
    return " ".join(out)


def documents(pool: list[str], count: int, seed: int = 1) -> Iterator[tuple[str, int]]:
    """(text, number of the document that it is a copy of, or -1)."""
    import numpy as np

    dice, draw = random.Random(seed), np.random.default_rng(seed)
    words = " ".join(pool[:: max(1, len(pool) // 4000)]).split()
    originals: list[tuple[int, str]] = []  # a sample of earlier documents, to be copied
    made = 0
    while made < count:
        lengths = np.exp(draw.normal(np.log(MEAN_CHARS) - SPREAD**2 / 2, SPREAD, 4096)).clip(
            80, 10_000
        )
        picks = draw.integers(0, len(pool), 4096 * 64).tolist()
        for length in lengths.tolist():
            if made == count:
                return
            chance = dice.random()
            if originals and chance < NEAR + EXACT:
                of, text = dice.choice(originals)
                if chance < NEAR:
                    text = edited(dice, text, dice.uniform(0.62, 0.99), words)
                yield text, of
                made += 1
                continue
            parts, size = [], 0
            while size < length:
                if not picks:
                    picks = draw.integers(0, len(pool), 4096 * 64).tolist()
                parts.append(pool[picks.pop()])
                size += len(parts[-1]) + 1
            text = " ".join(parts)
            if len(originals) < 5000:
                originals.append((made, text))
            else:
                originals[dice.randrange(5000)] = (made, text)
            yield text, -1
            made += 1


def write(path: Path, pool: list[str], count: int, seed: int = 1, layout: str = "text") -> dict:
    """Write a corpus as JSON lines; {"documents", "bytes", "copies"}. Layout "text" has id, text
    and of; "alpaca" has the first sentence as instruction and the rest as output, as a training set
    would."""
    from lib.files import replacing

    copies = size = 0
    with replacing(path) as handle:
        for number, (text, of) in enumerate(documents(pool, count, seed)):
            copies, size = copies + (of >= 0), size + len(text.encode())
            row = {"id": number, "text": text, "of": of}
            if layout == "alpaca":
                at = text.find(" ", 60)
                row = (
                    {"instruction": text[:at], "input": "", "output": text[at + 1 :]}
                    if at > 0
                    else {"instruction": "Go on with this text.", "input": "", "output": text}
                )
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"documents": count, "bytes": size, "copies": copies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=640_637)
    parser.add_argument("--data", default="packaged")
    parser.add_argument("--layout", choices=("text", "alpaca"), default="text")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    pool = sentences(chosen.data)
    made = write(chosen.out, pool, chosen.documents, chosen.seed, chosen.layout)
    print(
        f"{len(pool):,} sentences; {made['documents']:,} documents,"
        f" {made['bytes'] / made['documents']:,.0f} bytes on average, {made['copies']:,} copies:"
        f" {chosen.out}"
    )


if __name__ == "__main__":
    main()
