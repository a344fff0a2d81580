"""The job on Ray Data against the one-machine engine, row for row, on a local cluster of several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest

from lib.curation import cluster, dedup, rounds, shards
from tests.test_dedup import POOL, WRAPPER, corpus, edited, sentence

ray = pytest.importorskip("ray")


def text(row):
    return row["text"]


def priority(row, shard):
    return row["rank"], 0


@pytest.fixture(scope="module")
def local():
    cluster.start(workers=2)
    yield
    ray.shutdown()


def rows(seed=3):
    """Texts with near-duplicates of every degree, exact copies, templates and short ones; a rank each."""
    rng = random.Random(seed)
    texts = corpus(150, seed)
    texts += [rng.choice(texts) for _ in range(30)] + ["", "a", "a", "日本", "日本"]
    slots = [sentence(rng, 25, 40) for _ in range(120)]
    texts += [WRAPPER.format(slot) for slot in slots] + [WRAPPER.format(edited(rng, slot, 0.05)) for slot in slots[:40]]
    rng.shuffle(texts)
    ranks = rng.sample(range(10 * len(texts)), len(texts))
    return [{"text": one, "rank": rank} for one, rank in zip(texts, ranks, strict=True)]


def both(found, folder, suffix, count=3, **options):
    """(drops of the job, drops of the one machine) with rows named by place."""
    paths, keys = [], []
    for number in range(count):
        part = found[number * len(found) // count:(number + 1) * len(found) // count]
        paths.append(f"{folder}/part-{number}{suffix}")
        shards.write(part, paths[-1])
    named = shards.find([str(folder)])
    for chunk in shards.chunks(named):
        keys += [chunk["shard"] << cluster.NUMBER | number for number, _, _ in shards.read(chunk)]
    drops, stats = cluster.near_duplicates(named, text, priority, partitions=4, piece=40_000, **options)
    place = {key: at for at, key in enumerate(keys)}
    drops = drops.assign(row=drops["row"].map(place), keeper=drops["keeper"].map(place))
    one, _ = dedup.near_duplicates([row["text"] for row in found], [row["rank"] for row in found], **options)
    return drops, one, stats


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_job_drops_what_the_one_machine_drops(local, tmp_path, suffix):
    drops, one, stats = both(rows(), tmp_path, suffix, shingle="char3")
    pd.testing.assert_frame_equal(drops, one, check_dtype=False, check_exact=True)
    assert len(drops) > 80 and stats["chunks"] >= 3
    assert not set(drops["row"]) & set(drops["keeper"])
