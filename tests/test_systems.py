"""One way to ask any system: the same prompts and limits reach each, and nothing is asked twice."""

from __future__ import annotations

import os

import pytest

from lib import models
from lib.compression import runtime, to_gguf
from lib.endpoints.client import Client
from lib.evaluation import answers, systems
from lib.files import read_jsonl
from lib.generation import generate
from tests import tiny
from tests.openai_server import Server

ITEMS = [
    {"id": f"i{number}", "prompt": prompt, "checker": checker}
    for number, (prompt, checker) in enumerate(
        [("What is 2 + 2?", "math"), ("Write f.", "code"), ("Name the three colours", "choice"),
         ("Write a function that adds.", "code"), ("hi", "open")]
    )
]  # fmt: skip
SETTINGS = {"seed": 3, "max_new_tokens": 6, "max_new_tokens_code": 9, "batch_size": 2, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same model as a checkpoint, with an adapter, merged, and as GGUF files."""
    from transformers import GenerationConfig

    folder = tmp_path_factory.mktemp("systems")
    base = tiny.checkpoint(folder / "base", merges=tiny.MERGES)
    adapter = tiny.adapter(base, folder / "adapter", folder / "merged")
    for name in ("base", "merged"):  # llama.cpp ends a text at <|endoftext|>, too
        GenerationConfig(eos_token_id=[0, 2]).save_pretrained(folder / name)
    gguf = {"path": to_gguf.write(base, folder / "base.gguf", "F32"), "tokenizer": base}
    adapter_file = to_gguf.write_adapter(adapter, base, folder / "adapter.gguf", "F32")
    return {
        "checkpoint": {"name": "checkpoint", "path": base},
        "adapted": {"name": "adapted", "path": base, "adapter": adapter},
        "merged": {"name": "merged", "path": str(folder / "merged")},
        "gguf": {"name": "gguf", **gguf},
        "gguf adapted": {"name": "gguf-adapted", **gguf, "adapter": str(adapter_file)},
        "gguf off": {"name": "gguf-off", **gguf, "adapter": [adapter_file], "scales": [0.0]},
    }


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


def client(server, folder) -> Client:
    cache = folder / "answers.sqlite"
    return Client("reference", server.url, "m", 1.0, {"m": (1.0, 2.0)}, cache, 1, tries=1)


def texts(system, folder, items=ITEMS, **changes) -> dict[str, str]:
    """{item id: first answer} of a system asked in `folder`, as it stands in the file."""
    assert systems.answer(system, items, SETTINGS | {"folder": folder} | changes) == {}
    return {key: row["text"] for key, row in answers.read(folder, system["name"]).items()}


def test_an_adapter_answers_as_the_merged_model_does(made, tmp_path):
    adapted = texts(made["adapted"], tmp_path)
    assert adapted == texts(made["merged"], tmp_path)
    assert adapted != texts(made["checkpoint"], tmp_path), "the adapter does something"


def test_a_gguf_answers_as_its_checkpoint_does_with_an_adapter_on_or_off(made, tmp_path):
    base = texts(made["checkpoint"], tmp_path)
    assert texts(made["gguf"], tmp_path) == base
    assert texts(made["gguf adapted"], tmp_path) == texts(made["adapted"], tmp_path) != base
    assert texts(made["gguf off"], tmp_path) == base
    rows = answers.read(tmp_path, "gguf").values()
    assert all(len(row["logprobs"]) == row["tokens"] >= len(row["pieces"]) for row in rows)


def test_a_model_in_memory_answers_as_its_path_does(made, tmp_path):
    path = made["checkpoint"]["path"]
    loaded = models.load(path, "float32")
    system = {"name": "memory", "loaded": loaded, "key": models.key(path, "float32")}
    assert texts(system, tmp_path) == texts(made["checkpoint"], tmp_path / "other")
    with systems.opened(made["checkpoint"], SETTINGS) as ready:
        assert ready["key"] == system["key"] and ready["name"] == "checkpoint"
        again = texts(ready, tmp_path, n=2, temperature=0.9)
    assert len(answers.read(tmp_path, "checkpoint", 1)) == len(again) == len(ITEMS)


def test_the_same_prompts_reach_every_system(made, tmp_path, monkeypatch):
    seen = []
    plain = generate.render
    monkeypatch.setattr(generate, "render", lambda *told: seen.append(plain(*told)) or seen[-1])
    tokenizer = models.load_tokenizer(made["checkpoint"]["path"])
    with Server(lambda body: "hello") as server:
        texts({"name": "reference", "client": client(server, tmp_path)}, tmp_path)
        bodies = [request["body"] for request in server.requests]
    expected = sorted(plain(tokenizer, body["messages"]) for body in bodies)
    assert len(expected) == len(ITEMS)
    for name in ("checkpoint", "adapted", "gguf", "gguf adapted"):
        seen.clear()
        texts(made[name], tmp_path)
        assert sorted(seen) == expected, name
    code = {item["prompt"] for item in ITEMS if item["checker"] == "code"}
    for body in bodies:
        assert body["temperature"] == 0.0 and "seed" not in body
        assert body["max_tokens"] == (9 if body["messages"][0]["content"] in code else 6)


@pytest.mark.parametrize("name", ["checkpoint", "gguf"])
def test_code_may_be_longer_than_the_rest(made, tmp_path, name):
    texts(made[name], tmp_path)
    rows = answers.read(tmp_path, made[name]["name"])
    cut = [item for item in ITEMS if rows[item["id"]]["finish"] == "length"]
    assert {item["checker"] == "code" for item in cut} == {True, False}
    for item in cut:
        assert rows[item["id"]]["tokens"] == (9 if item["checker"] == "code" else 6)
    one = {key: value for key, value in SETTINGS.items() if key != "max_new_tokens_code"}
    systems.answer(made[name], ITEMS, one | {"folder": tmp_path})
    assert max(row["tokens"] for row in answers.read(tmp_path, made[name]["name"]).values()) == 6


def interrupted(function, after: int, calls: list):
    """The function, which is killed when it is called for the `after`-th time."""

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize(
    "name, room, step",
    [("checkpoint", generate, "_finish"), ("gguf adapted", runtime, "_answer_row")],
)
def test_a_killed_call_goes_on_where_it_stopped(made, tmp_path, monkeypatch, name, room, step):
    """One sequence at a time, so that two samples are finished when the third is killed."""
    sampled = {"n": 2, "temperature": 0.8, "batch_size": 1}
    whole = texts(made[name], tmp_path / "whole", **sampled)
    plain, calls = getattr(room, step), []
    monkeypatch.setattr(room, step, interrupted(plain, 3, calls))
    with pytest.raises(KeyboardInterrupt):
        texts(made[name], tmp_path / "killed", **sampled)
    assert not answers.path(tmp_path / "killed", made[name]["name"]).exists()
    kept = list(read_jsonl(tmp_path / "killed" / "store.jsonl"))
    assert len(kept) == 2
    calls.clear()
    monkeypatch.setattr(room, step, interrupted(plain, -1, calls))
    assert texts(made[name], tmp_path / "killed", **sampled) == whole
    assert len(calls) == 2 * len(ITEMS) - len(kept)
    calls.clear()
    assert texts(made[name], tmp_path / "killed", **sampled) == whole
    assert not calls, "nothing is left to be asked"


def test_a_paid_answer_is_not_paid_for_twice(tmp_path):
    with Server(lambda body: body["messages"][0]["content"].upper()) as server:
        texts({"name": "reference", "client": client(server, tmp_path)}, tmp_path, ITEMS[:3])
        assert len(server.requests) == 3
        found = texts({"name": "reference", "client": client(server, tmp_path)}, tmp_path)
        assert len(server.requests) == len(ITEMS)
    assert found == {item["id"]: item["prompt"].upper() for item in ITEMS}


def test_an_item_without_an_answer_has_an_error_and_no_row(tmp_path):
    with Server(lambda body: "yes") as server:
        system = {"name": "reference", "client": client(server, tmp_path)}
        settings = SETTINGS | {"folder": tmp_path, "n": 2, "temperature": 0.5}
        server.faults = ["empty"]  # one of the two samples of the first item
        errors = systems.answer(system, ITEMS, settings)
        assert list(errors) == ["i0"] and errors["i0"]
        for number in (0, 1):
            answered = answers.read(tmp_path, "reference", number)
            assert list(answered) == [item["id"] for item in ITEMS[1:]]
        assert {request["body"]["seed"] for request in server.requests} == {3, 4}
        before = len(server.requests)
        assert systems.answer(system, ITEMS, settings) == {}
        assert len(server.requests) == before + 1, "only what is missing is asked again"
    assert len(answers.read(tmp_path, "reference", 1)) == len(ITEMS)


def test_a_system_that_does_not_fit_says_why(made, tmp_path):
    settings = SETTINGS | {"folder": tmp_path}
    wrong = [
        ({"path": "/nowhere"}, "neither a packaged model"),
        ({"path": made["gguf"]["path"]}, "needs the folder of its `tokenizer`"),
        (made["gguf adapted"] | {"scales": [1.0, 2.0]}, "1 adapters but 2 scales"),
    ]
    for system, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            systems.answer({"name": "wrong", **system}, ITEMS, settings)


def test_the_key_of_a_gguf_follows_adapter_scale_and_template(made):
    on, off, base = (made[name] for name in ("gguf adapted", "gguf off", "gguf"))
    half = on | {"scales": [0.5]}
    keys = {systems.gguf_key(system, tiny.CHATML) for system in (on, off, base, half)}
    assert len(keys) == 4 and systems.gguf_key(base, tiny.MARKED) not in keys
    assert systems.gguf_key(on | {"scales": [1.0]}, tiny.CHATML) in keys
