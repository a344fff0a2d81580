"""Packing is lossless and refuses all that is off; confidence, hard examples, better answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lib.compression import pack, recover, sizes
from lib.evaluation import confidence


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "weights.bin"
    path.write_bytes(
        (rng.integers(0, 12, 3_000_000, dtype=np.uint8) * (rng.random(3_000_000) < 0.4)).tobytes()
    )
    return path


@pytest.mark.parametrize(
    "settings",
    [{}, {"level": 3}, {"window_log": 25}, {"dictionary": True}],
    ids=["plain", "level 3", "long window", "dictionary"],
)
def test_what_is_unpacked_is_what_was_packed(source, tmp_path, settings):
    settings = dict(settings)
    if settings.pop("dictionary", False):
        settings["dictionary"] = pack.dictionary(source)
    packed = tmp_path / "x.zst"
    manifest = pack.pack(source, packed, **settings)
    found = pack.unpack(packed, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert found["sha256"] == manifest["sha256"] and found["bytes"] == manifest["bytes"]
    files = [packed, *tmp_path.glob("x.zst.dict")]
    assert (
        manifest["packed_bytes"]
        == sum(file.stat().st_size for file in files)
        < 0.5 * manifest["bytes"]
    )
    assert sizes.measure(packed)["bytes"] == packed.stat().st_size


def test_packing_respects_the_entropy_of_independent_symbols(source, tmp_path):
    bound = sizes.order0_bytes(np.fromfile(source, np.uint8), 1)
    for level in (1, 10):
        assert pack.pack(source, tmp_path / "x.zst", level=level)["packed_bytes"] > bound


def refused(tmp_path, packed, words, **limits):
    with pytest.raises(pack.Refused, match=words):
        pack.unpack(packed, tmp_path / "out", **limits)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*")), (
        "nothing half-written stays"
    )


def test_every_flipped_byte_is_noticed(source, tmp_path):
    packed = tmp_path / "x.zst"
    pack.pack(source, packed)
    whole = packed.read_bytes()
    for place in (0, 5, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        refused(tmp_path, packed, "fetch it again|holds more|goes on")


def test_a_cut_a_longer_and_an_exploding_file_are_refused(source, tmp_path):
    packed = tmp_path / "x.zst"
    pack.pack(source, packed)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 3])
    refused(tmp_path, packed, "cut short")
    packed.write_bytes(whole + b"more")
    refused(tmp_path, packed, "goes on")
    packed.write_bytes(whole)
    refused(tmp_path, packed, "are allowed", most_bytes=1000)
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))  # 50 MB out of a few kB
    packed.write_bytes(bomb)
    manifest = json.loads((tmp_path / "x.zst.json").read_text()) | {"packed_bytes": len(bomb)}
    (tmp_path / "x.zst.json").write_text(json.dumps(manifest))
    refused(tmp_path, packed, "holds more than the 3,000,000 bytes")


def test_damage_is_refused_on_copies_and_leaves_nothing(source, tmp_path):
    packed = tmp_path / "x.zst"
    pack.pack(source, packed)
    before = packed.read_bytes()
    rows = pack.answers_to_damage(packed, tmp_path / "damaged")
    assert len(rows) == 3 and all(row["answer"] != "accepted" for row in rows)
    assert [row["files left"] for row in rows] == [0, 0, 0]
    assert packed.read_bytes() == before and not (tmp_path / "damaged").exists()


def test_a_manifest_that_is_none_a_missing_one_and_a_wrong_dictionary_are_refused(source, tmp_path):
    packed = tmp_path / "x.zst"
    pack.pack(source, packed, dictionary=pack.dictionary(source))
    (tmp_path / "x.zst.dict").write_bytes(b"another")
    refused(tmp_path, packed, "not the dictionary")
    manifest = tmp_path / "x.zst.json"
    for text in ("[]", "{", json.dumps({"bytes": "many"})):
        manifest.write_text(text)
        refused(tmp_path, packed, "not a manifest")
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="without its manifest"):
        pack.unpack(packed, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nothing to pack"):
        pack.pack(tmp_path / "none", packed)
    (tmp_path / "small").write_bytes(b"abc")
    with pytest.raises(ValueError, match="too few"):
        pack.dictionary(tmp_path / "small")


def test_memory_stays_bounded_while_unpacking(tmp_path):
    """64 MB unfold in a process that may not hold them."""
    import subprocess
    import sys

    path, packed = tmp_path / "zeros", tmp_path / "zeros.zst"
    path.write_bytes(bytes(64_000_000))
    pack.pack(path, packed, level=1)
    code = (
        "import resource, sys; from lib.compression import pack; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "pack.unpack(sys.argv[1], sys.argv[2]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, packed, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 32_000, "kilobytes above the start"


def drawn(n=4000, seed=0, sharpness=1.0):
    """Confidences, and answers right exactly as often as they say; sharpness > 1 makes the
    confidences too sure."""
    rng = np.random.default_rng(seed)
    honest = rng.beta(2, 2, n)
    right = rng.random(n) < honest
    return 1 / (1 + np.exp(-sharpness * confidence.logit(honest))), right


def test_an_honest_model_has_the_ece_of_chance_and_an_overconfident_one_more():
    honest = confidence.measures(*drawn(), resamples=200)
    sure = confidence.measures(*drawn(sharpness=3.0), resamples=200)
    assert honest["ece"]["value"] < 2 * honest["ece"]["floor"] < sure["ece"]["low"]
    assert honest["brier"]["value"] < sure["brier"]["value"]
    assert honest["auroc"]["value"] == pytest.approx(sure["auroc"]["value"]), (
        "order is what AUROC sees"
    )


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_each_method_repairs_overconfidence_on_other_answers(method):
    repair = confidence.fit(method, *drawn(sharpness=3.0))
    sure, right = drawn(seed=1, sharpness=3.0)
    before, after = confidence.ece(sure, right), confidence.ece(repair(sure), right)
    assert after < before / 2.5 and after < 0.04
    if method == "temperature":
        assert repair.about["temperature"] == pytest.approx(3.0, rel=0.1)
    if method == "platt":
        assert repair.about["slope"] == pytest.approx(1 / 3, rel=0.15)


def test_ece_brier_and_risk_of_cases_worked_by_hand():
    chances, right = [0.9, 0.8, 0.3, 0.2], [True, True, False, False]
    assert confidence.ece(chances, right, 2) == pytest.approx((abs(1.7 - 2) + abs(0.5 - 0)) / 4)
    assert confidence.measures(chances, right)["brier"]["value"] == pytest.approx(
        (0.01 + 0.04 + 0.09 + 0.04) / 4
    )
    assert confidence.risk_coverage(chances, right) == [
        (0.25, 0),
        (0.5, 0),
        (0.75, pytest.approx(1 / 3)),
        (1.0, 0.5),
    ]
    assert confidence.risk_area(chances, right) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    tied = confidence.risk_coverage([0.5, 0.5], [True, False])
    assert tied == [(1.0, 0.5)], "equal confidences cannot be told apart"
    threshold = confidence.best_threshold(chances, right)
    assert threshold == 0.8 and all(confidence.decisions(chances, right, threshold))
    assert confidence.best_threshold([0.9, 0.8], [False, False]) == math.inf


def test_auroc_is_scikit_learn_s_with_ties_too():
    from sklearn.metrics import roc_auc_score

    chances, right = drawn(300)
    chances = np.round(chances, 1)
    assert confidence.auroc(chances, right) == pytest.approx(roc_auc_score(right, chances))


def test_nothing_is_fitted_to_answers_that_are_all_right_or_to_an_unknown_method():
    with pytest.raises(ValueError, match="all 3 answers"):
        confidence.fit("platt", [0.1, 0.2, 0.3], [True] * 3)
    with pytest.raises(ValueError, match="known are raw"):
        confidence.fit("magic", [0.1, 0.2], [True, False])
    alike = confidence.measures([0.0, 0.0], [False, False])
    assert "auroc" not in alike
    assert alike["ece"]["value"] == 0 and alike["ece"]["high"] > 0.5, "two answers prove nothing"


def test_signals_come_from_the_tokens_that_spell_the_answer():
    row = {
        "pieces": ["The", " answer", " is", " 4", "2", "."],
        "logprobs": [-1, -1, -1, -0.5, -0.1, -2, -3],
    }
    found = confidence.signals(row, "42", 0.75)
    assert found["answer token"] == pytest.approx(math.exp(-0.3)) and found["agreement"] == 0.75
    assert found["sequence"] == pytest.approx(math.exp(-8.6))
    assert found["mean token"] == pytest.approx(math.exp(-8.6 / 7))
    assert (
        confidence.signals(row, "43").keys()
        == {"sequence", "mean token"}
        == confidence.signals(row, None).keys()
    )


def test_a_frame_of_signals_and_the_best_of_those_that_every_answer_has():
    from lib.prompts import item

    items = [item("t", "math", f"Q{n}?", "4", "math", licence="-") for n in range(4)]
    said = {"pieces": ["The", " answer", " is", " 4", "."]}
    greedy, again, grades = {}, {}, {}
    for number, each in enumerate(items):
        text, right = ("The answer is 4.", True) if number % 2 else ("No idea", False)
        logprobs = [-0.1] * 5 if right else [-2.0] * 5
        greedy[each["id"]] = {"text": text, "logprobs": logprobs, **said}
        again[each["id"]] = {"text": "The answer is 4."}
        grades[each["id"]] = {"correct": right, "answer": "4" if right else None}
    table = confidence.frame(items, greedy, [again, again], grades)
    assert table["right"].tolist() == [False, True, False, True]
    assert table["agreement"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert table["answer token"].isna().tolist() == [True, False, True, False]
    ranked = confidence.ranking({"fit": table, "none": table.iloc[:0]}, 0)
    assert ranked["mean token"]["fit"]["value"] == 1.0 and ranked["agreement"]["fit"]["n"] == 4
    assert not ranked["answer token"]["fit"] and not ranked["sequence"]["none"]
    best = confidence.best_signal(table, {name: row["fit"] for name, row in ranked.items()})
    assert best == "sequence", "the first of equals, and none that an answer lacks"


def test_the_hardest_rows_come_first_and_too_few_are_refused():
    found = {"nats": [2.0, 30.0, 8.0], "tokens": [2, 10, 2]}
    assert recover.hardest({"id": ["a", "b", "c"]}, found, 2) == [
        ("c", pytest.approx(math.exp(4))),
        ("b", pytest.approx(math.exp(3))),
    ]
    with pytest.raises(ValueError, match="score more rows"):
        recover.hardest({"id": ["a"]}, {"nats": [1.0], "tokens": [1]}, 2)


class Teacher:
    model = "stand-in"

    def chat(self, requests, label):
        replies = [
            {"text": " better ", "finish": "stop"},
            {"text": "cut", "finish": "length"},
            {"error": "refused"},
        ]
        assert all(request["messages"][-1]["role"] == "user" for request in requests)
        return replies


def test_a_teacher_s_whole_answers_replace_gold_and_the_rest_stays(tmp_path):
    from lib.files import read_jsonl

    rows = [
        {"id": str(n), "instruction": f"question {n}", "response": f"gold {n}"} for n in range(3)
    ]
    about = recover.write_better_answers(rows, tmp_path / "rows.jsonl", Teacher())
    assert about == {"rows": 3, "answered": 1, "source": "stand-in"}
    assert [row["response"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [
        "better",
        "gold 1",
        "gold 2",
    ]
    assert recover.write_better_answers(rows, tmp_path / "rows.jsonl")["source"] == "gold"
