"""Which training rows repeat an evaluation item: runs of its words, or its whole question.

The rule. A row is contaminated when it holds 13 words in a row of an evaluation question or answer (as in
Brown et al. 2020, appendix C; shorter questions count with all their words, down to a minimum), unless that
run is wording: it occurs in more than a few evaluation items, or in background text known to be clean. A
whole question in the row always counts, digits and signs included. Case, spacing and Unicode form do not.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\w+|[^\w\s]")


class Index:
    """Evaluation texts, ready to be looked for in rows.

    evaluation: iterable of (name, question, answer or None). n: words of a run. minimum: fewest words of a
    short question that counts as a run, and fewest tokens of a question that is looked for inside other text;
    a shorter one must be a whole line, or the whole `question`, of a row. max_items: a run that more items
    share is wording. ignore: background texts whose runs are wording too. `counts` says what was indexed.
    Raises ValueError when an evaluation text is not a string or minimum is not in 2..n.
    """

    def __init__(self, evaluation: Iterable[tuple[str, str, str | None]], n: int = 13, minimum: int = 8,
                 max_items: int = 3, ignore: Iterable[str] = ()):
        import numpy as np

        from lib.curation import runs

        if not 2 <= minimum <= n:
            raise ValueError(f"minimum {minimum} must lie between 2 and n, {n}")
        self.n, self.minimum, self.names = n, minimum, []
        self._whole: dict[str, int] = {}
        self._longest_short = 0  # characters of the longest question that only a whole line can repeat
        self._starts: dict[int, set[int]] = defaultdict(set)
        keys, items, lengths = [], [], set()
        for name, question, answer in evaluation:
            if not isinstance(question, str):
                raise ValueError(f"{name}: the question is a {type(question).__name__}, not text")
            number = len(self.names)
            self.names.append(name)
            self._add_question(question, number)
            own = [np.empty(0, np.uint64)]
            for text, shortest in ((question, minimum), (answer or "", n)):
                words = WORD.findall(_fold(text))
                if len(words) >= shortest:
                    lengths.add(min(n, len(words)))
                    own.append(_windows(words, min(n, len(words))))
            keys.append(np.unique(np.concatenate(own)))
            items.append(np.full(len(keys[-1]), number, np.int32))
        self.lengths = sorted(lengths)
        keys = np.concatenate([np.empty(0, np.uint64), *keys])
        self._items = np.concatenate([np.empty(0, np.int32), *items])[np.argsort(keys, kind="stable")]
        self._runs, first, shared = np.unique(np.sort(keys), return_index=True, return_counts=True)
        self._first = np.append(first, len(keys))
        self._evidence = shared <= max_items
        wording = int((~self._evidence).sum())
        self._seen = runs.filter_bits(self._runs)
        self._first_tokens = np.array(sorted(self._starts), np.uint64)
        self._started = runs.filter_bits(self._first_tokens)
        for text in ignore:
            self._evidence[[at for at, _, _ in self._find(WORD.findall(_fold(text)))]] = False
        self.counts = {"texts": len(self.names), "questions": len(self._whole), "runs": len(self._runs),
                       "wording_runs": wording, "ignored_runs": int((~self._evidence).sum()) - wording}

    def match(self, text: str, question: str | None = None) -> list[tuple[str, str]]:
        """(evaluation name, reason) for each item that the row repeats; empty when it is clean.

        text: all text of the row. question: its instruction alone, if known, compared with whole questions.
        """
        found: dict[int, str] = {}
        folded = _fold(text)
        for number in self._questions(folded, question):
            found.setdefault(number, "whole question")
        words = WORD.findall(folded)
        for at, start, length in self._find(words):
            if self._evidence[at]:
                for number in self._items[self._first[at]:self._first[at + 1]].tolist():
                    found.setdefault(number, f"{length} words: {' '.join(words[start:start + length])}")
        return [(self.names[number], reason) for number, reason in sorted(found.items())]

    def _add_question(self, question: str, number: int) -> None:
        tokens = _question_tokens(question)
        if not tokens:
            return
        self._whole.setdefault(" ".join(tokens), number)
        if len(tokens) < self.minimum:
            self._longest_short = max(self._longest_short, len(" ".join(tokens)))
        else:
            self._starts[int(_windows(tokens[:self.minimum], self.minimum)[0])].add(len(tokens))

    def _questions(self, folded: str, question: str | None) -> Iterable[int]:
        """Items whose whole question is the row's question, a line of it, or a run of its tokens."""
        from lib.curation import runs

        room = 2 * self._longest_short + 20  # for spacing; longer questions are found as runs of tokens
        lines = [line for line in folded.splitlines() if len(line) <= room]
        for line in (*lines, *([question] if question else [])):
            if (number := self._whole.get(" ".join(_question_tokens(line)))) is not None:
                yield number
        tokens = TOKEN.findall(folded)
        starts, places = runs.find(_hashes(tokens), self.minimum, self._first_tokens, self._started)
        for start, place in zip(starts.tolist(), places.tolist(), strict=True):
            for length in self._starts[int(self._first_tokens[place])]:
                if (number := self._whole.get(" ".join(tokens[start:start + length]))) is not None:
                    yield number

    def _find(self, words: list[str]) -> list[tuple[int, int, int]]:
        """(position among the indexed runs, start, length) of every indexed run in a list of words."""
        from lib.curation import runs

        hashes, found = _hashes(words), []
        for length in self.lengths:
            starts, places = runs.find(hashes, length, self._runs, self._seen)
            found += [(at, start, length) for at, start in zip(places.tolist(), starts.tolist(), strict=True)]
        return found


def _hashes(words: list[str]):
    """Python's own hash of each word, uint64; it differs between processes and never leaves this one."""
    import numpy as np

    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


def _windows(words: list[str], length: int):
    """Hash, uint64, of every run of `length` words; empty when there are fewer."""
    from lib.curation import runs

    return runs.windows(_hashes(words), length)


def _fold(text: str) -> str:
    """Lower case, and one form for letters that Unicode can write in several ways; line breaks stay."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _question_tokens(text: str) -> list[str]:
    """Words and signs of a question without the marks that end it: "15 - 26 =" keeps its signs."""
    tokens = TOKEN.findall(_fold(text))
    while tokens and tokens[-1] in "?.!:;,\"'":
        tokens.pop()
    return tokens
