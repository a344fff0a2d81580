"""Generation: equal to transformers' own greedy search, independent of batching, never done
twice."""

import json

import pytest

from lib import models
from lib.files import content_hash
from lib.generation import decoding, decoding_graph, generate
from tests import tiny

PROMPTS = [
    "a",
    "What is 2 + 2?",
    "List three colours of the rainbow, please.",
    "hi",
    "a longer prompt " * 6,
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    name = tiny.checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    return (*models.load(name, "float32"), models.key(name, "float32"))


def test_greedy_equals_transformers_generate(loaded):
    model, tokenizer, _ = loaded
    ours = generate.generate(model, tokenizer, PROMPTS, max_new_tokens=20, batch_size=3)
    for prompt, (answer,) in zip(PROMPTS, ours, strict=True):
        text = generate.render(tokenizer, generate.as_messages(prompt))
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        theirs = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0][
            inputs["input_ids"].shape[1] :
        ]
        assert answer["text"] == tokenizer.decode(theirs, skip_special_tokens=True)
        assert answer["tokens"] == len(theirs)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_samples_do_not_depend_on_the_batch(loaded, batch_size):
    model, tokenizer, _ = loaded
    settings = {"n": 3, "temperature": 0.8, "max_new_tokens": 12, "seed": 5}
    whole = generate.generate(model, tokenizer, PROMPTS, batch_size=7, **settings)
    other = generate.generate(model, tokenizer, PROMPTS[::-1], batch_size=batch_size, **settings)[
        ::-1
    ]
    assert [[sample["text"] for sample in row] for row in whole] == [
        [sample["text"] for sample in row] for row in other
    ]
    assert len({sample["text"] for row in whole for sample in row}) > len(
        PROMPTS
    )  # samples of a prompt differ


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_ring_gives_what_the_growing_batch_gives(loaded, monkeypatch, temperature, batch_size):
    """Prompts of many lengths through few places, so that columns are used again and again; off
    CUDA uncaptured."""
    model, tokenizer, _ = loaded
    prompts = PROMPTS + [f"{index} " * (index % 9) for index in range(20)]
    settings = {
        "n": 2,
        "temperature": temperature,
        "max_new_tokens": 30,
        "seed": 3,
        "batch_size": batch_size,
    }
    growing = generate.generate(model, tokenizer, prompts, **settings)
    rings, ring = [], decoding_graph.Ring
    monkeypatch.setattr(decoding_graph, "usable", lambda model: True)
    monkeypatch.setattr(
        decoding_graph, "Ring", lambda *given: rings.append(ring(*given)) or rings[0]
    )
    ours = generate.generate(model, tokenizer, prompts, **settings)
    assert [[(s["text"], s["tokens"], s["finish"]) for s in row] for row in ours] == [
        [(s["text"], s["tokens"], s["finish"]) for s in row] for row in growing
    ]
    assert {s["finish"] for row in ours for s in row} == {"stop", "length"} or temperature == 0
    steps = sum(s["tokens"] for row in ours for s in row) / batch_size
    assert steps > 2 * rings[0].columns or batch_size == 64, f"{steps} steps hardly came round"


def test_places_fit_the_memory_that_is_free(loaded):
    model = loaded[0]  # 2 layers, 2 key/value heads of 16, float32, vocabulary 259
    row = 2 * 2 * 2 * 16 * 4 * 64 + 40 * 259
    assert decoding_graph.places(model, 10, 64, 3 * row + 1) == 3
    assert decoding_graph.places(model, 2, 64, 3 * row) == 2
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        decoding_graph.places(model, 10, 64, row - 1)


def test_sampling_follows_the_softmax(loaded):
    """Frequencies of the first token against the exact distribution, by a chi-square test."""
    import torch
    from scipy.stats import chisquare

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    rows = [
        {"out": [], "uniform": generate._uniform(content_hash(str(index)), 1)}
        for index in range(4000)
    ]
    counts = torch.bincount(generate._choose(logits, rows, 0.7), minlength=4).numpy()
    expected = torch.softmax(logits[0].double() / 0.7, -1).numpy() * 4000
    assert chisquare(counts, expected).pvalue > 1e-4


def test_a_store_is_never_generated_twice_and_survives_a_torn_line(loaded, tmp_path, monkeypatch):
    model, tokenizer, key = loaded
    store = tmp_path / "generations.jsonl"
    settings = {"n": 2, "temperature": 1.0, "max_new_tokens": 8, "store": store, "model_key": key}
    first = generate.generate(model, tokenizer, PROMPTS, **settings)
    lines = store.read_bytes().splitlines(keepends=True)
    store.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    calls, prefill = [], decoding.prefill_group
    monkeypatch.setattr(
        decoding, "prefill_group", lambda *args: calls.append(len(args[2])) or prefill(*args)
    )
    assert [
        [s["text"] for s in row] for row in generate.generate(model, tokenizer, PROMPTS, **settings)
    ] == [[s["text"] for s in row] for row in first]
    assert calls == [1]  # the torn one alone
    assert (
        len({json.loads(line)["key"] for line in store.read_text().splitlines()})
        == len(PROMPTS) * 2
    )
    generate.generate(None, None, PROMPTS, **settings)  # everything is stored: no model is needed


def test_a_damaged_store_says_where(loaded, tmp_path):
    store = tmp_path / "generations.jsonl"
    store.write_text('{"key": "a"\n{"key": "b"}\n')
    with pytest.raises(ValueError, match="line 1"):
        generate.load_store(store)


def test_wrong_input_is_refused(loaded, tmp_path):
    model, tokenizer, _ = loaded
    with pytest.raises(ValueError, match="model_key"):
        generate.generate(model, tokenizer, ["a"], store=tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="context of 512"):
        generate.generate(model, tokenizer, ["a" * 600])


def test_another_model_or_setting_has_another_key():
    base = ("k", [{"role": "user", "content": "a"}], 0.7, 8, 1, 0)
    keys = {generate.request_key(*base)}
    for index, value in enumerate(("k2", [{"role": "user", "content": "b"}], 0.8, 9, 2, 1)):
        keys.add(
            generate.request_key(
                *(value if place == index else old for place, old in enumerate(base))
            )
        )
    assert len(keys) == 7
