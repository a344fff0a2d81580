"""Readers and normalisers: every layout of the plan, and input that is broken in every way we could
think of."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from types import SimpleNamespace

import pytest

from lib.curation import filters, normalise, readers, sources
from lib.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


def read(path, **options):
    return list(readers.read_file(path, **options))


def one(raw, source="somewhere"):
    rows = normalise.normalise(raw, source, "MIT")
    assert len(rows) == 1
    return rows[0]


# ---------------------------------------------------------------- readers


def test_broken_lines_are_refused_by_line_and_their_neighbours_stay(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\n".join(
            [
                b'\xef\xbb\xbf{"n": 1}',
                b"",
                b'{"n": 2, "t": "caf\xe9"}',
                b'{"n": 3',
                b"[1, 2]",
                b'{"n": "\\ud800"}',
                b"[" * 100_000,  # Python 3.13 follows 5,000
                '{"n": 4, "t": "café"}'.encode(),
            ]
        )
    )
    found = read(path)
    assert [row["n"] for _, row, _ in found if row] == [1, 4]
    assert {line: reason.split(":")[0] for line, row, reason in found if row is None} == {
        3: "invalid UTF-8 at byte 18",
        4: "not JSON",
        5: "a JSON list, not an object",
        6: "half a surrogate pair",
        7: "JSON nested too deeply",
    }


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_five_megabyte_row_is_refused_by_the_stated_limit_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wb") as handle:
        handle.write(b'{"a": 1}\n')
        handle.write(b'{"a": "' + b"x" * 5_000_000 + b'"}\n')
        for _ in range(40):
            handle.write(b"y" * 1_000_000)  # one line of 40 MB that never was JSON
        handle.write(b'\n{"a": 2}')
    tracemalloc.start()
    found = read(path, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line, bool(row)) for line, row, _ in found] == [
        (1, True),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert found[1][2] == "row larger than 1,000,000 bytes"
    assert peak < 8_000_000


def test_a_truncated_gzip_keeps_its_rows_and_says_so(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    rows = [{"n": i, "t": f"{i * 7919 % 1000003}" * 5} for i in range(20000)]
    whole = gzip.compress(b"\n".join(json.dumps(row).encode() for row in rows))
    path.write_bytes(whole[: len(whole) // 2])
    found = read(path)
    good = [row for _, row, _ in found if row]
    assert len(good) > 1000 and good == rows[: len(good)]
    assert "rows.jsonl.gz is a broken gzip file" in found[-1][2]
    path.write_bytes(b"this is no gzip")
    assert "broken gzip" in read(path)[0][2]


def test_json_files_are_arrays_objects_or_values_in_a_row(tmp_path):
    path = tmp_path / "rows.json"
    tricky = {"t": 'a "quoted" ] } \\ [ { text', "n": {"deep": [1, {"x": "}"}]}}
    for text in (
        json.dumps([tricky] * 3),
        json.dumps([tricky] * 3, indent=2),
        "\n".join([json.dumps(tricky)] * 3),
        json.dumps({"canary": "no", "examples": [tricky] * 3}),
        json.dumps({str(i): tricky for i in range(3)}),
    ):
        path.write_text(text)
        assert [row for _, row, _ in read(path)] == [tricky] * 3
    path.write_text(json.dumps(tricky))
    assert [row for _, row, _ in read(path)] == [tricky]
    path.write_bytes(b'[{"n": 1}, {"n": "\xff"}, {"n": 2}, {"n": 3')
    assert [(line, row and row["n"]) for line, row, _ in read(path)] == [
        (1, 1),
        (2, None),
        (3, 2),
        (4, None),
    ]
    for text in ("", "[]", "null", "hello"):
        path.write_text(text)
        assert read(path) == [(1, None, "no JSON array or object in this file")]


def test_strings_cut_by_the_reading_block_stay_whole(tmp_path):
    path = tmp_path / "rows.json"
    for shift in range(
        65_520, 65_545
    ):  # an escape or a quote falls on either side of the 64 KiB border
        rows = [{"t": "x" * shift + '\\"]}'}, {"n": 2}]
        path.write_text(json.dumps(rows))
        assert [row for _, row, _ in read(path)] == rows


def test_csv_with_byte_order_mark_quotes_and_faults(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfinstruction,output\r\n"a, b","two\nlines"\r\nonly'
        b" one\r\nx,caf\xe9\r\nlast,row\r\n"
    )
    found = read(path)
    assert found[0][1] == {"instruction": "a, b", "output": "two\nlines"}
    assert [reason for _, row, reason in found if row is None] == [
        "1 cells under 2 columns",
        "invalid UTF-8",
    ]
    assert found[-1][1] == {"instruction": "last", "output": "row"}
    path.write_text("instruction,output\nx," + "y" * 3000 + "\na,b\n")
    found = read(path, max_bytes=1000)
    assert any("larger" in (reason or "") for _, _, reason in found)
    tabs = tmp_path / "rows.tsv"
    tabs.write_text("instruction\toutput\na\tb\n")
    assert read(tabs)[0][1] == {"instruction": "a", "output": "b"}


# ---------------------------------------------------------------- sources


def test_a_missing_source_names_itself_and_what_exists(tmp_path):
    (tmp_path / "alpaca.jsonl").write_text("{}\n")
    with pytest.raises(
        sources.SourceError, match=r"'alpaka.jsonl' is neither a file.*alpaca.jsonl"
    ):
        sources.find(["alpaka.jsonl"], tmp_path)
    with pytest.raises(sources.SourceError, match="does not exist; beside it"):
        sources.find([], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(sources.SourceError, match="has no data file"):
        sources.find([], tmp_path / "empty")


def test_local_sources_have_name_licence_and_digest(tmp_path):
    folder = tmp_path / "instruct"
    folder.mkdir()
    (folder / "dolly.csv.gz").write_bytes(gzip.compress(b"instruction,response\na,b\n"))
    (folder / "mine.jsonl").write_text("{}\n")
    (folder / "notes.txt").write_text("no data")
    (folder / "licences.json").write_text('{"mine.jsonl": "CC0"}')
    found = sources.find([], tmp_path)
    assert [(s["name"], s["licence"], len(s["fingerprint"])) for s in found] == [
        ("dolly", "CC BY-SA 3.0", 64),
        ("mine", "CC0", 64),
    ]
    assert sources.licence_of("sahil2801/CodeAlpaca-20k") == "CC BY-NC 4.0"
    assert sources.licence_of("who/knows") == "not stated"


def test_hub_sources_are_pinned_and_streamed(monkeypatch):
    asked = {}

    def info(self, repo, revision=None):
        asked["info"] = repo, revision
        return SimpleNamespace(sha="0123abcd", card_data=SimpleNamespace(license="mit"))

    def load(repo, **options):
        asked["load"] = repo, options
        return iter([{"question": "q", "response": "r"}] * 5)

    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (source,) = sources.find(["Open-Orca/OpenOrca@v1"], "packaged")
    assert asked["info"] == ("Open-Orca/OpenOrca", "v1")
    assert (source["revision"], source["licence"], source["kind"]) == ("0123abcd", "mit", "hub")
    rows = list(sources.read(source, limit=3))
    assert [line for line, _, _ in rows] == [1, 2, 3] and rows[0][1]["response"] == "r"
    assert asked["load"] == (
        "Open-Orca/OpenOrca",
        {"split": "train", "streaming": True, "revision": "0123abcd"},
    )

    def offline(self, repo, revision=None):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(
        sources.SourceError, match="Hub data set a/b cannot be reached .ConnectionError: no route."
    ):
        sources.find(["a/b"], "packaged")


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {"id": "1", "system_prompt": "Be kind.", "question": "Q", "response": "R"},
            {"system": "Be kind."},
        ),
        ({"instruction": "Q", "input": "", "output": "R"}, {}),
        ({"instruction": "Q", "input": "<noinput>", "response": "R", "output": "R"}, {}),
        ({"instruction": "Q", "input": "", "response": "R\r\n"}, {}),
        ({"instruction": "Q", "context": "", "response": "R", "category": "open_qa"}, {}),
        (
            {"query": "Q", "response": "R", "type": "MATH_AnsAug", "original_question": "Q0"},
            {"domain": "conversation"},
        ),
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: R", "rejected": "\n\nHuman: Q\n\nAssistant: no"},
            {},
        ),
        (
            {
                "idx": 1,
                "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}],
            },
            {},
        ),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "agent", "value": "R"}]}, {}),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "Q"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "reasoning", "value": "hm"},
                            {"type": "text", "value": "R"},
                        ],
                    },
                ]
            },
            {"system": "S"},
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "R"},
                "rejected": {"from": "gpt", "value": "no"},
            },
            {},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "R"},
                ],
                "label": True,
            },
            {},
        ),
        ({"prompt": "Q", "completion": "R<|endoftext|>"}, {}),
        (
            {
                "prompt": (
                    "Below is an instruction that describes a task. Write a response.\n\n###"
                    " Instruction:\nQ\n\n### Response:\n"
                ),
                "response": "R",
            },
            {},
        ),
        ({"input": "Q", "output": "R"}, {}),
        (
            {
                "id": "t",
                "instruction": "Q",
                "instances": [{"input": "", "output": "R"}],
                "is_classification": False,
            },
            {},
        ),
        (
            {
                "message_id": "1",
                "text": "Q",
                "role": "prompter",
                "replies": [
                    {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
                    {"text": "R", "role": "assistant", "rank": 0, "replies": []},
                    {
                        "text": "gone",
                        "role": "assistant",
                        "rank": 0,
                        "deleted": True,
                        "replies": [],
                    },
                ],
            },
            {},
        ),
        (
            {
                "message_tree_id": "1",
                "tree_state": "ready",
                "prompt": {
                    "text": "Q",
                    "role": "prompter",
                    "replies": [{"text": "R", "role": "assistant", "replies": []}],
                },
            },
            {},
        ),
        ({"question": "Q", "answer": "R"}, {}),
    ],
)
def test_every_layout_gives_the_same_row(raw, expected):
    row = one(raw)
    assert (row["instruction"], row["response"], row["source"]) == ("Q", "R", "somewhere")
    assert row["licence"] == "MIT" and len(row["id"]) == 16 and "history" not in row
    assert expected.items() <= row.items()


def test_conversations_keep_what_came_before_as_history():
    turns = [
        "Human: a",
        "Assistant: b",
        "Human: c",
        "Human: d",
        "Assistant: e",
        "Human: unanswered",
    ]
    row = one({"chosen": "".join(f"\n\n{turn}" for turn in turns), "rejected": ""})
    assert (row["history"], row["instruction"], row["response"]) == ([["a", "b"]], "c\nd", "e")
    assert row["id"] != one({"instruction": "c\nd", "output": "e"})["id"]
    row = one({"instruction": "c", "input": "", "output": "e", "history": [["a", "b"]]})
    assert row["history"] == [["a", "b"]]


def test_input_and_context_follow_the_instruction_and_gsm8k_answers_lose_their_marks():
    assert (
        one({"instruction": "Sum up.", "context": "Text.", "response": "R"})["instruction"]
        == "Sum up.\n\nText."
    )
    row = one({"question": "Q", "answer": "2+2=<<2+2=4>>4\n#### 4"})
    assert row["response"] == "2+2=4\nThe answer is 4."
    assert one({"instruction": "Q", "output": "R", "licence": "PSF-2.0"})["licence"] == "PSF-2.0"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (
            {"prompt_id": 1, "payload": 2},
            "unknown layout with keys prompt_id, payload; known layouts: self-instruct",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Q"},
                    {"from": "function_call", "value": "{}"},
                ]
            },
            "tool calls",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": None, "tool_calls": [{}]},
                ]
            },
            "tool calls",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "R"},
                ],
                "label": False,
            },
            "labelled undesirable",
        ),
        ({"messages": "text"}, "not a list of messages"),
        ({"conversations": [{"from": "narrator", "value": "Q"}]}, "unknown speaker 'narrator'"),
        ({"chosen": "just text", "rejected": "x"}, "no Human/Assistant turns"),
        ({"instruction": ["Q"], "output": "R"}, "a list where text belongs"),
        ({"instruction": "Q", "instances": []}, "no instance"),
    ],
)
def test_what_cannot_become_a_row_is_refused_with_its_reason(raw, reason):
    with pytest.raises(normalise.Unusable, match=reason):
        normalise.normalise(raw, "somewhere", "MIT")


def test_rows_without_an_answer_reach_the_filters_as_no_response():
    limits = {"min_chars": 3, "max_chars": 12000, "max_repetition": 0.5}
    for raw in (
        {"idx": 1, "Skill": "Math", "Difficulty": 3, "Instruction": "How far?"},
        {"instruction": "How far?", "input": "", "output": None},
        {"conversations": [{"from": "human", "value": "How far?"}]},
        {"chosen": "\n\nHuman: How far?\n\nAssistant:", "rejected": ""},
    ):
        assert filters.unfit(one(raw), **limits) == "no response"


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("instruction", "response", "reason"),
    [
        ("What is two plus two?", "4", None),
        ("hi", "Hello, how are you?", "instruction too short"),
        ("Draw a cat.", "<nooutput>", "placeholder response"),
        ("Draw a cat.", "As an AI language model, I cannot draw.", "refusal boilerplate"),
        ("Say what Siri says.", "She says what she thinks about an AI and a model.", None),
        ("Go on.", "and so on and on " * 50, "repetition"),
        ("Ring.", "ding\x07", "control characters"),
        ("Show code.", "```python\nprint(1)", "truncated code block"),
        ("Who are you?", "I am {{name}}.", "unfilled template"),
        ("Repeat me.", "Repeat me.", "response repeats the instruction"),
        ("Write.", "word " * 4000, "too long"),
    ],
)
def test_filters_name_what_is_wrong(instruction, response, reason):
    row = {"instruction": instruction, "response": response, "domain": "conversation"}
    assert filters.unfit(row, min_chars=3, max_chars=12000, max_repetition=0.5) == reason


def test_domains_follow_category_then_source_then_words():
    assert filters.domain("dolly", "Anything", "x", "creative_writing") == "creative"
    assert filters.domain("meta-math/MetaMathQA", "Write a poem", "x") == "math"
    for text, label in (
        ("Write a Python function that sorts a list", "code"),
        ("Solve the equation 3x + 4 = 10", "math"),
        ("Write a short story about a dragon", "creative"),
        ("How does photosynthesis give plants energy?", "science"),
        ("Classify these and explain why", "reasoning"),
        ("Hello there", "conversation"),
    ):
        assert filters.domain("alpaca", text, "") == label


def test_difficulty_counts_signs_of_work_unless_the_source_says():
    assert filters.difficulty("Capital of France?", "Paris.") == "easy"
    assert filters.difficulty("You must list exactly three", "1. a\n2. b\n3. c") == "medium"
    assert (
        filters.difficulty("must " + "word " * 130, "1. x\n2. y\n3. z\n" + "word " * 260) == "hard"
    )
    assert [filters.difficulty("x", "y", level) for level in (1, 5, 10, "Level 1", "Level 5")] == [
        "easy",
        "medium",
        "hard",
        "easy",
        "hard",
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
def test_every_real_file_is_read_and_every_row_is_accounted_for():
    counted = {}
    for source in sources.find([], SHARED):
        made = refused = 0
        for _, raw, reason in sources.read(source, limit=300):
            assert reason is None
            try:
                made += len(normalise.normalise(raw, source["name"], source["licence"])) > 0
            except normalise.Unusable as error:
                assert str(error) in ("labelled undesirable", "tool calls")
                refused += 1
        counted[source["name"]] = made, refused
    assert len(counted) == 23 and all(made for made, _ in counted.values())
    assert {name for name, (_, refused) in counted.items() if refused} == {
        "llamafactory_kto_en_demo"
    }
