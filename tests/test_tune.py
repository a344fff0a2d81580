"""Rows to merged checkpoint: mix-in, both kinds of base, and a killed call made again."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from lib.evaluation import probe
from lib.files import ROOT, read_jsonl, write_jsonl
from lib.training import merge, tune
from tests import tiny

VALUES = {
    "epochs": 2,
    "max_steps": 0,
    "learning_rate": 0.01,
    "warmup_share": 0.1,
    "effective_batch": 4,
    "micro_tokens": 100,
    "early_stopping_patience": 0,
    "eval_steps": 2,
    "seed": 3,
    "dtype": "float32",
    "base_dtype": "float32",
    "max_length": 200,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "four_bit": False,
}


def rows(count: int, start: int = 0) -> list[dict]:
    return [
        {
            "id": f"{i:04d}",
            "instruction": f"Add {i} and 1.",
            "response": f"It is {i + 1}.",
            "target_temperature": 0.3 if i % 3 == 0 else 0.0,
        }
        for i in range(start, start + count)
    ]


def test_mix_takes_the_asked_share_and_repeats_no_row(tmp_path):
    write_jsonl(tmp_path / "old.jsonl", rows(50, 100) + rows(2))
    counts = tune.mix(rows(27), tmp_path / "old.jsonl", 0.1, 1, tmp_path / "whole.jsonl")
    whole = list(read_jsonl(tmp_path / "whole.jsonl"))
    assert (
        counts == {"new": 27, "original": 3, "share": 0.1}
        and len({row["id"] for row in whole}) == 30
    )
    tune.mix(rows(27), tmp_path / "old.jsonl", 0.1, 1, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert tune.mix(rows(5), tmp_path / "old.jsonl", 0.0, 1, tmp_path / "x.jsonl")["original"] == 0
    with pytest.raises(ValueError, match="below 1"):
        tune.mix(rows(5), tmp_path / "old.jsonl", 1.0, 1, tmp_path / "x.jsonl")


@pytest.mark.parametrize("four_bit", [False, True])
def test_from_rows_to_an_audited_merge(tmp_path, four_bit):
    """The audit holds the merge against what was trained: exact on a full base, a measured gap
    after 4 bits."""
    pytest.importorskip("bitsandbytes")
    base = tiny.checkpoint(tmp_path / "base")
    write_jsonl(tmp_path / "rows.jsonl", rows(12))
    values = VALUES | {"four_bit": four_bit}
    result = tune.tune(
        base, tmp_path / "rows.jsonl", tmp_path / "rows.jsonl", 4, tmp_path / "out", values
    )
    losses = [row["loss"] for row in result["history"] if "loss" in row]
    assert (
        result["finished"]
        and losses[-1] < losses[0]
        and result["loss_after"].mean() < result["loss_before"].mean()
    )
    record = json.loads((result["adapter"] / "training.json").read_text())
    assert (
        record["base_quantised"] is four_bit
        and ("NF4" in record.get("base_quantisation", "")) is four_bit
    )
    if four_bit:
        with pytest.raises(ValueError, match="quantised base"):
            merge.merge(base, result["adapter"], tmp_path / "refused", "float32", "float32")
        assert not (tmp_path / "refused").exists()
    merged = tune.merged(base, tmp_path / "out", values, "float32")
    item = {
        "id": "a",
        "task": "t",
        "category": "math",
        "prompt": "1 + 1?",
        "gold": "2",
        "checker": "math",
        "meta": {},
    }
    settings = {"folder": tmp_path / "asked", "seed": 1, "max_new_tokens": 4, "batch_size": 8}
    audit = merge.audit(
        base,
        result["adapter"],
        merged,
        [[5, 9, 40, 41, 100, 7], [200, 3, 3, 90]],
        partial(probe.ask, [item], settings, "key"),
        base_dtype="float32",
        merged_dtype="float32",
        seed=1,
        wrong_ways=not four_bit,
    )
    assert audit["metrics"]["base_is_full_precision"] == int(not four_bit)
    texts = {label: rows["a"]["text"] for label, (rows, _) in audit["answers"].items()}
    assert list(texts) == [row["variant"] for row in audit["task_rows"]]
    assert audit["rows"][-1]["variant"] == audit["yardstick"] not in texts
    assert len(list((tmp_path / "asked").glob("generations-*.jsonl"))) == len(texts)
    assert audit["reference"] == (merge.REFERENCE_4BIT if four_bit else merge.REFERENCE)
    if four_bit:
        assert audit["kl"]["merged"] > 1e-4
        assert audit["kl"]["adapter on full-precision base"] == pytest.approx(
            audit["kl"]["merged"], rel=1e-3
        )
    else:
        assert (
            audit["kl"]["merged"] < 1e-6 < audit["kl"][merge.WRONG]
            and audit["metrics"]["kl_wrong_way"] > 0
        )


SCRIPT = """
import sys, time, json
from pathlib import Path
from lib import models
from lib.training import conversations, sharpen, tune
folder, values, slow = Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
out, base = folder / sys.argv[4], str(folder / "base")
out.mkdir(exist_ok=True)
model, tokenizer = models.load(base, "float32")
data, _ = conversations.dataset(folder / "rows.jsonl", tokenizer, 200, 0, 3, out / "cache")
sharpen.write(model, data, out / "targets.safetensors", {id: 0.3 for id in data["id"][::3]}, 16)
result = tune.tune(base, folder / "rows.jsonl", folder / "rows.jsonl", 4, out, values,
                   targets=out / "targets.safetensors", probe=lambda *loaded: time.sleep(slow) or 0.5)
kept = {key: result[key] for key in ("history", "probe", "steps", "tokens", "resumed_from")}
(out / "result.json").write_text(json.dumps(kept))
"""  # noqa: E501


def start(folder, name, slow):
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(VALUES), str(slow), name]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_sigkill_during_training_changes_nothing(tmp_path):
    """Soft targets and plain rows: losses and adapter after a SIGKILL equal those of a run never
    stopped."""
    from safetensors.numpy import load_file

    tiny.checkpoint(tmp_path / "base")
    write_jsonl(tmp_path / "rows.jsonl", rows(24))
    process = start(tmp_path, "killed", 1.0)
    deadline = time.time() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("checkpoint-*/complete.json")):
        assert time.time() < deadline and process.poll() is None, (
            "no checkpoint before the run ended"
        )
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        start(tmp_path, "killed", 0).wait(120) == 0 and start(tmp_path, "whole", 0).wait(120) == 0
    )
    whole, resumed = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert resumed["resumed_from"] >= 2 and whole["resumed_from"] == 0
    curves = [
        [(row["step"], row["loss"]) for row in result["history"] if "loss" in row]
        for result in (whole, resumed)
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 12 and whole["tokens"] == resumed["tokens"]
    weights = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "killed")
    ]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
