"""Which training rows repeat an evaluation item: runs of its words, or its whole question.

The rule. A row is contaminated when it holds 13 words in a row of an evaluation question or answer
(as in Brown et al. 2020, appendix C; shorter questions count with all their words, down to a
minimum), unless that run is wording: it occurs in more than a few evaluation items, or in
background text known to be clean. A whole question in the row always counts, digits and signs
included. Case, spacing and Unicode form do not.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable

WORD = re.compile(r"\w+")


class Index:
    """Evaluation texts, ready to be looked for in rows.

    evaluation: iterable of (name, question, answer or None). n: words of a run. minimum: fewest
    words of a short question that counts as a run, and fewest tokens of a question that is looked
    for inside other text; a shorter one must be a whole line, or the whole `question`, of a row.
    max_items: a run that more items share is wording. ignore: background texts whose runs are
    wording too. `counts` says what was indexed. Raises ValueError when an evaluation text is not a
    string or minimum is not in 2..n.
    """

    def __init__(
        self,
        evaluation: Iterable[tuple[str, str, str | None]],
        n: int = 13,
        minimum: int = 8,
        max_items: int = 3,
        ignore: Iterable[str] = (),
    ):
        if not 2 <= minimum <= n:
            raise ValueError(f"minimum {minimum} must lie between 2 and n, {n}")
        self.names: list[str] = []
        questions, runs, lengths = [], [], set()
        for name, question, answer in evaluation:
            if not isinstance(question, str):
                raise ValueError(f"{name}: the question is a {type(question).__name__}, not text")
            self.names.append(name)
            asked = _tokens(_fold(question))
            questions.append(_unclosed(*asked))
            told = ((asked, minimum), (_tokens(_fold(answer or "")), n))
            runs.append(_runs(told, n, lengths))
        wording = self._set_runs(runs, lengths, max_items)
        whole = self._set_questions(questions, minimum)
        for text in ignore:
            self._evidence[self._find(*_tokens(_fold(text)))[:, 0]] = False
        self.counts = {
            "texts": len(self.names),
            "questions": whole,
            "runs": len(self._runs),
            "wording_runs": wording,
            "ignored_runs": int((~self._evidence).sum()) - wording,
        }

    def _set_runs(self, runs: list, lengths: set[int], max_items: int) -> int:
        """Index the runs of each item, sorted; how many of them are shared wording."""
        import numpy as np

        from lib.curation import word_runs

        self._lengths = np.array(sorted(lengths), np.int64)
        keys = np.concatenate([np.empty(0, np.uint64), *runs])
        numbers = np.repeat(np.arange(len(runs), dtype=np.int32), [len(own) for own in runs])
        self._items = numbers[np.argsort(keys, kind="stable")]
        self._runs, first, shared = np.unique(np.sort(keys), return_index=True, return_counts=True)
        self._first = np.append(first, len(keys))
        self._evidence = shared <= max_items
        self._seen = word_runs.filter_bits(self._runs)
        return int((~self._evidence).sum())

    def _set_questions(self, questions: list, minimum: int) -> int:
        """Index whole questions, and how long those of each beginning are; how many differ."""
        import numpy as np

        from lib.curation import word_runs

        hashes, owners = array("Q"), array("i")
        starts: dict[int, set[int]] = defaultdict(set)
        for number, asked in enumerate(questions):
            if len(asked):
                hashes.append(word_runs.whole(asked))
                owners.append(number)
            if len(asked) >= minimum:
                starts[int(word_runs.whole(asked[:minimum]))].add(len(asked))
        whole, first = np.unique(np.array(hashes, np.uint64), return_index=True)
        self._question_items = np.array(owners, np.int32)[first]  # of equal questions the first one
        begin = sorted(starts)
        edges = np.cumsum([0, *(len(starts[key]) for key in begin)])
        sizes = np.array([size for key in begin for size in sorted(starts[key])], np.int64)
        begin = np.array(begin, np.uint64)
        filters = word_runs.filter_bits(whole), word_runs.filter_bits(begin)
        self._questions = (whole, filters[0], minimum, begin, filters[1], edges, sizes)
        return len(whole)

    def match(self, text: str, question: str | None = None) -> list[tuple[str, str]]:
        """(evaluation name, reason) for each item that the row repeats; empty when it is clean.

        text: all text of the row. question: its instruction alone, if known, compared with whole
        questions.
        """
        import numpy as np

        from lib.curation import word_runs

        reasons: dict[int, str] = {}
        folded = _fold(text)
        hashes, kinds = _tokens(folded)
        places = word_runs.find_questions(hashes, kinds, *self._questions).tolist()
        if question:
            # a large plain int is no uint64 to numba
            key = np.uint64(word_runs.whole(_unclosed(*_tokens(_fold(question)))))
            places.append(word_runs.position(key, *self._questions[:2]))
        for place in places:
            if place >= 0:
                reasons.setdefault(int(self._question_items[place]), "whole question")
        for at, start, length in self._find(hashes, kinds).tolist():
            if self._evidence[at]:
                run = " ".join(WORD.findall(folded)[start : start + length])
                for number in self._items[self._first[at] : self._first[at + 1]].tolist():
                    reasons.setdefault(number, f"{length} words: {run}")
        return [(self.names[number], reason) for number, reason in sorted(reasons.items())]

    def _find(self, hashes, kinds):
        """Int64 rows (position among the indexed runs, start, length) of runs in some tokens."""
        from lib.curation import word_runs

        return word_runs.find(hashes, kinds, self._lengths, self._runs, self._seen)


def _runs(texts, n: int, lengths: set[int]):
    """Hashes of the runs of up to `n` words of (tokens, fewest words); `lengths` takes theirs."""
    import numpy as np

    from lib.curation import word_runs

    own = [np.empty(0, np.uint64)]
    for (hashes, kinds), shortest in texts:
        words = hashes[kinds == word_runs.WORD]
        if len(words) >= shortest:
            lengths.add(min(n, len(words)))
            own.append(word_runs.windows(words, min(n, len(words))))
    return np.unique(np.concatenate(own))


def _tokens(folded: str):
    import numpy as np

    from lib.curation import word_runs
    from lib.dedup import textfile

    return word_runs.tokens(np.frombuffer(textfile.encode(folded), np.uint8), word_runs.classes())


def _unclosed(hashes, kinds):
    """Tokens of a question without line ends and the marks that end it; "15 - 26 =" keeps signs."""
    from lib.curation import word_runs

    hashes, kinds = hashes[kinds != word_runs.BREAK], kinds[kinds != word_runs.BREAK]
    size = len(kinds)
    while size and kinds[size - 1] == word_runs.CLOSING:
        size -= 1
    return hashes[:size]


def _fold(text: str) -> str:
    """Lower case, and one form of letters that Unicode writes in several ways; line breaks stay."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
