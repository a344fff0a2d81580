"""Every IFEval instruction kind against one text that follows it and one that just misses it."""

import gzip
import json

import pytest

from lib.evaluation import constraints
from lib.files import ROOT

IFEVAL = ROOT.parent / "shared" / "data" / "evals" / "ifeval_input_data.jsonl.gz"

# id, kwargs, texts that comply, texts that do not
CASES = [
    (
        "keywords:existence",
        {"keywords": ["mom", "mother"]},
        ["My Mom is a mother."],
        ["My mom.", "Moms and mothers."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock"]},
        ["We roll.", "rocket"],
        ["Rock on", "the rock."],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War, war."],
        ["war wars"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "less than"},
        ["war wars"],
        ["War, war."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "o", "let_frequency": 3, "let_relation": "at least"},
        ["Oo o"],
        ["oo"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# a"],
        ["##"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["It's a fine day"],
        ["a b c"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        ["a b c"],
        ["a b c d"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["Yes. It costs 3.50 today!", "One\n\nTwo"],
        ["Dr. Smith paid 3.50 to J. Doe."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two?"],
        ["One. Two? Three!"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb"],
        ["a\n\nb", "a"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a *** b"],
        ["a\n***\n***\nb", "a\n******\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "president"},
        ["One.\n\nPresident Doe came.", 'One.\n\n\n"President" he said'],
        ["President.\n\nTwo", "One.\n\nPresidents came.", "a\n\nb\n\nPresident"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [address]"],
        ["[name]", "[] []"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Call me", "Bye\n\nP. S.: call", "Bye\nPS: x"],
        ["Bye", "PSALM 3", "See the P.S."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Call me", "Bye.\nP.P.S call"],
        ["Bye.\nP.S. Call me", "Bye\nP.P.S"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\ntext\n- b"],
        ["* a", "**a**\n* b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["Well. My answer is maybe."],
        ["My answer is yes", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b c**"],
        ["*a*", "* a\n* b"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1 a", "section 1 section 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```'],
        ["a: 1", 'Here: {"a": 1}'],
    ),
    ("detectable_format:title", {}, ["<<A day>>\ntext"], ["<A day>", "<< >>"]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo"],
        ["one\n******\none", "one ****** ", "a******b******c"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku."},
        ["Write a haiku. Sun."],
        ["Write a haiku.", "Sun."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "So what is next?"},
        ['Well. "so what is next?"'],
        ["So what is next? Bye"],
    ),
    ("startend:quotation", {}, ['"All of it."'], ['"Part" of it', '"']),
    ("change_case:english_capital", {}, ["ALL OF 3 IT!"], ["ALL of it", "123"]),
    ("change_case:english_lowercase", {}, ["all of 3 it!"], ["All of it", "123"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["BIG news, HUGE"],
        ["BIG News"],
    ),
    ("punctuation:no_comma", {}, ["no comma here."], ["a, b", "a، b"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter."],
        ["This is a plain English sentence about the weather."],
    ),
]


@pytest.mark.parametrize(
    ("name", "kwargs", "good", "bad"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_by_hand(name, kwargs, good, bad):
    for text in good:
        assert constraints.failed([name], [kwargs], text) == [], text
    for text in bad:
        assert constraints.failed([name], [kwargs], text) == [name], text


def test_cases_cover_every_checker():
    assert {case[0] for case in CASES} == set(constraints.CHECKERS)
    assert len(constraints.CHECKERS) == 25


def test_unknown_instruction_is_named():
    with pytest.raises(ValueError, match="made:up"):
        constraints.failed(["made:up"], [{}], "text")


def test_empty_text_follows_nothing():
    assert constraints.failed(["punctuation:no_comma"], [{}], " \n") == ["punctuation:no_comma"]


@pytest.mark.skipif(not IFEVAL.exists(), reason="needs the shared test data")
def test_every_ifeval_prompt_has_a_checker_that_takes_its_arguments():
    count = 0
    with gzip.open(IFEVAL, "rt", encoding="utf-8") as handle:
        for row in map(json.loads, handle):
            constraints.failed(
                row["instruction_id_list"], row["kwargs"], "A short reply, in English."
            )
            count += 1
    assert count == 541
