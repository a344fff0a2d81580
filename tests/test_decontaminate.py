"""Decontamination: what counts as a repeat of an evaluation item, what is only wording."""

import random
import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.curation import decontaminate, word_runs
from lib.curation.decontaminate import Index
from lib.files import ROOT

LONG = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    " How many clips did Natalia sell altogether in April and May?"
)
SHORT = "Which planet of the solar system has the largest number of moons?"  # 12 words
TINY = "What is 15 - 26 = ?"
CODE = (
    'def has_close_elements(numbers: List[float], threshold: float) -> bool:\n    """ Check if in'
    ' given list of numbers, are any two closer to each other than given threshold. """'
)


@pytest.fixture(scope="module")
def index():
    answer = (
        "Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether in both."
        " #### 72"
    )
    return Index(
        [
            ("gsm8k/1", LONG, answer),
            ("moons", SHORT, "Saturn"),
            ("sum", TINY, "-11"),
            ("humaneval/0", CODE, None),
        ]
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LONG, ["gsm8k/1"]),
        (
            "Solve this.\n" + LONG.upper().replace(" ", "\n  ") + "\nThanks!",
            ["gsm8k/1"],
        ),  # case, spacing
        (
            "Her friend sold clips to 48 of her friends in April, and then she sold half of it.",
            ["gsm8k/1"],
        ),
        (
            "She sold clips to 48 of her friends in April, and that was that.",
            [],
        ),  # 11 words in a row
        (
            "So: natalia sold 48 2 24 clips in May, natalia sold 48 24 72 clips altogether",
            ["gsm8k/1"],
        ),
        (
            "Tell me, which planet of the solar system has the largest number of moons? Saturn.",
            ["moons"],
        ),
        ("Which planet of the solar system has the largest number of rings?", []),
        ("What is 15 - 26 =\n-11", ["sum"]),  # a whole line, closing mark apart
        ("What is 15 + 26 = ?\n41", []),  # the sign matters
        (
            "Somebody asked: What is 15 - 26 = ? and nobody knew.",
            [],
        ),  # too short to look for inside text
        (CODE + "\n    return True", ["humaneval/0"]),
        ("", []),
        ("   \n\n", []),
        ("moons", []),
    ],
)
def test_match(index, text, names):
    assert [name for name, _ in index.match(text)] == names


def test_reasons_name_the_evidence(index):
    [(_, reason)] = index.match("x " + LONG[:90])
    assert reason.startswith("13 words: natalia sold clips")
    assert index.match(LONG) == [("gsm8k/1", "whole question")]
    assert index.match("other text", question="what is 15 - 26 =") == [("sum", "whole question")]


def test_unicode_forms_are_one():
    question = "Où se trouve la forêt la plus proche du café de l’hôtel à Orléans aujourd’hui ?"
    index = Index([("q", question, None)])
    import unicodedata

    assert index.match(unicodedata.normalize("NFD", question)) == [("q", "whole question")]


def family(rng, count):
    return [
        "A farmer keeps animals on a large green field near the river and counts them every"
        f" evening. There are {rng.randint(10, 10**6)} cows and {rng.randint(10, 10**6)} hens. How"
        " many are there?"
        for _ in range(count)
    ]


def test_wording_shared_by_many_items_is_no_evidence():
    rng = random.Random(0)
    test, train = family(rng, 50), family(rng, 200)
    index = Index([(str(i), text, None) for i, text in enumerate(test)])
    assert not any(index.match(row) for row in train)  # same family, other numbers
    for i, text in enumerate(test):
        assert index.match(f"Question: {text} Answer: 3") == [(str(i), "whole question")]
    assert index.counts["wording_runs"] > 0
    strict = Index([(str(i), text, None) for i, text in enumerate(test)], max_items=50)
    assert all(strict.match(row) for row in train)  # the wrong way: every row of the family goes


def test_background_text_excuses_its_wording_but_no_whole_question():
    wording = (
        "Work out the sum of the two numbers that the following sentence gives, then write it"
        " down: "
    )
    index = Index([("a", wording + "7 and 9", None)], ignore=[wording + "1 and 2"])
    assert index.match(wording + "3 and 4") == []
    assert index.match(wording + "7 and 9") == [("a", "whole question")]
    assert index.counts["ignored_runs"] > 0


def test_two_items_that_share_a_run_are_both_named():
    run = " ".join(f"w{i}" for i in range(13))
    index = Index([("a", run + " first", None), ("b", "second " + run, None)])
    assert [name for name, _ in index.match("before " + run + " after")] == ["a", "b"]


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=0, max_size=12), max_size=6),
    st.lists(st.sampled_from("abcde"), max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_runs_are_those_of_a_plain_search(questions, row):
    n, minimum = 5, 3
    named = [(str(i), " ".join(q), None) for i, q in enumerate(questions)]
    index = Index(named, n=n, minimum=minimum, max_items=99)

    def runs(words):
        size = min(n, len(words)) if len(words) >= minimum else len(words) + 1
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    text = " ".join(row)
    padded = {
        tuple(row[i : i + size])
        for size in range(minimum, n + 1)
        for i in range(len(row) - size + 1)
    }
    expected = {str(i) for i, q in enumerate(questions) if runs(q) & padded}
    found = {name for name, reason in index.match("| " + text + " |") if reason != "whole question"}
    whole = {name for name, reason in index.match("| " + text + " |") if reason == "whole question"}
    assert found | whole == expected


@given(
    st.text(
        st.one_of(st.sampled_from("ab_9 \n\r\x0b\x1c\x85\u2028\u3000?.+é日"), st.characters()),
        max_size=60,
    )
)
@settings(max_examples=300, deadline=None)
@example("\r\n")  # one line end
@example("\n\r")  # two
@example("a\r\n\r\nb\r")
@example("\u010d\nb")  # its second byte of UTF-8 is 0x8d, no "\r"
def test_tokens_are_those_of_regular_expressions(text):
    hashes, kinds = decontaminate._tokens(text)
    inside = kinds != word_runs.BREAK
    found = re.findall(r"\w+|[^\w\s]", text)
    assert (kinds[inside] == word_runs.WORD).tolist() == [
        re.match(r"\w", token) is not None for token in found
    ]
    assert (kinds[inside] == word_runs.CLOSING).tolist() == [
        token in word_runs.CLOSES for token in found
    ]
    assert (
        len(set(zip(found, hashes[inside].tolist(), strict=True)))
        == len(set(found))
        == len(set(hashes[inside]))
    )
    wanted = [len(re.findall(r"\w+|[^\w\s]", line)) for line in (text + "|").splitlines()]
    assert np.diff(np.flatnonzero(np.append(np.insert(~inside, 0, True), True))).tolist() == [
        size + 1 for size in wanted[:-1]
    ] + [wanted[-1]]


def test_the_bloom_filter_loses_no_key_and_lets_few_others_through():
    keys = np.unique(
        np.random.default_rng(0).integers(0, 1 << 63, 20_000, np.uint64) * np.uint64(2)
        + np.uint64(1)
    )
    bits = word_runs.filter_bits(keys)
    assert [word_runs.position(key, keys, bits) for key in keys[::50]] == list(
        range(0, len(keys), 50)
    )
    assert all(word_runs.position(key, keys, bits) == -1 for key in keys[::50] - np.uint64(1))


def test_empty_index_and_wrong_use():
    index = Index([])
    assert index.match("anything at all " * 20) == [] and index.counts["texts"] == 0
    assert Index([("blank", " ?! ", None)]).match("?!") == []
    with pytest.raises(ValueError, match="minimum"):
        Index([], n=5, minimum=8)
    with pytest.raises(ValueError, match="q1: the question is a NoneType"):
        Index([("q1", None, None)])


def test_fast_enough_for_every_row():
    rng = random.Random(1)
    words = [f"word{i}" for i in range(5000)]
    index = Index([(str(i), " ".join(rng.choices(words, k=40)), None) for i in range(2000)])
    rows = [" ".join(rng.choices(words, k=200)) for _ in range(500)]
    start = time.process_time()
    assert not any(index.match(row) for row in rows)
    assert 500 / (time.process_time() - start) > 2000  # rows a second; 640 k rows in minutes
    assert index.match("x " * 1_000_000) == []  # a row of 2 MB


@pytest.mark.skipif(not (ROOT.parent / "shared" / "data").exists(), reason="needs shared/data")
def test_real_gsm8k_test_items_are_found_in_their_other_layouts():
    import gzip
    import json

    def rows(name):
        with gzip.open(
            ROOT.parent / "shared" / "data" / "evals" / f"{name}.jsonl.gz", "rt"
        ) as handle:
            return [json.loads(line) for line in handle]

    test, train = rows("gsm8k_test_first_half"), rows("gsm8k_train")
    index = Index([(str(i), row["question"], row["answer"]) for i, row in enumerate(test)])
    for copy in rows("metamath_gsm8k_test_first_half"):  # the same items as query and response
        assert index.match(copy["query"])
    flagged = sum(bool(index.match(row["question"] + "\n" + row["answer"])) for row in train)
    assert flagged < 0.02 * len(train)  # the two splits share a few phrases, no more
