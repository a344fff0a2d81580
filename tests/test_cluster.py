"""The job on Ray Data against the one-machine engine, row for row, on a local cluster of several
processes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest

from lib.cluster import curate as cluster_curate
from lib.cluster import job as cluster_job
from lib.cluster import near_duplicates as cluster
from lib.cluster import rounds, session, shards
from lib.curation import splits
from lib.dedup import near_duplicates
from lib.evaluation import tasks
from lib.files import read_jsonl
from tests.test_curate import QUESTION, SETTINGS, SHARES, curated, folder  # noqa: F401 (a fixture)
from tests.test_dedup import WRAPPER, corpus, edited, sentence


def text(row):
    return row["text"]


def priority(row, shard):
    return row["rank"], 0


@pytest.fixture(scope="module")
def local():
    ray = pytest.importorskip("ray")
    session.start(workers=2)
    yield ray
    ray.shutdown()


def rows(seed=3):
    """Texts with near-duplicates of every degree, exact copies, templates and short ones; a rank
    each."""
    rng = random.Random(seed)
    texts = corpus(150, seed)
    texts += [rng.choice(texts) for _ in range(30)] + ["", "a", "a", "日本", "日本"]
    slots = [sentence(rng, 25, 40) for _ in range(120)]
    texts += [WRAPPER.format(slot) for slot in slots] + [
        WRAPPER.format(edited(rng, slot, 0.05)) for slot in slots[:40]
    ]
    rng.shuffle(texts)
    ranks = rng.sample(range(10 * len(texts)), len(texts))
    return [{"text": one, "rank": rank} for one, rank in zip(texts, ranks, strict=True)]


def both(found, where, suffix, count=3, **options):
    """(drops of the job, drops of the one machine) with rows named by place."""
    keys = []
    for number in range(count):
        part = found[number * len(found) // count : (number + 1) * len(found) // count]
        shards.write(part, f"file://{where}/part-{number}{suffix}")
    named = shards.find([str(where)])
    for chunk in shards.chunks(named):
        keys += [chunk["shard"] << shards.NUMBER | number for number, _, _ in shards.read(chunk)]
    drops, stats = cluster.find(named, text, priority, partitions=4, piece=40_000, **options)
    place = {key: at for at, key in enumerate(keys)}
    drops = drops.assign(row=drops["row"].map(place), keeper=drops["keeper"].map(place))
    one, _ = near_duplicates.find(
        [row["text"] for row in found], [row["rank"] for row in found], **options
    )
    return drops, one, stats


@pytest.mark.cluster
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_job_drops_what_the_one_machine_drops(local, tmp_path, suffix):
    drops, one, stats = both(rows(), tmp_path, suffix)
    pd.testing.assert_frame_equal(drops, one, check_dtype=False, check_exact=True)
    assert len(drops) > 80 and stats["chunks"] >= 3
    assert not set(drops["row"]) & set(drops["keeper"])


@pytest.mark.cluster
def test_a_killed_worker_changes_nothing(local, tmp_path):
    """A worker process is killed while the job runs, as the system's memory guard would; Ray does
    its task again."""
    import psutil

    killed = []

    def kill():
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for process in psutil.Process().children(
                recursive=True
            ):  # this session's own cluster and no other
                title = " ".join(process.cmdline()) if process.is_running() else ""
                if title.startswith("ray::") and "MapBatches" in title:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    drops, one, _ = both(rows(5), tmp_path, ".jsonl", template_rows=0)
    thread.join()
    assert killed, "no worker was seen at work"
    pd.testing.assert_frame_equal(drops, one, check_dtype=False, check_exact=True)


def greedy(count, edges, rank):
    """The definition: go through rows in order, drop what is alike to a kept one; the most alike
    keeper, then best."""
    near: dict[int, dict[int, float]] = {row: {} for row in range(count)}
    for (a, b), value in edges.items():
        near[a][b] = near[b][a] = value
    dropped = {}
    for row in sorted(range(count), key=rank.__getitem__):
        kept = [other for other in near[row] if rank[other] < rank[row] and other not in dropped]
        if kept:
            keeper = max(kept, key=lambda other: (near[row][other], -rank[other]))
            dropped[row] = (keeper, near[row][keeper])
    return dropped


@pytest.mark.parametrize("seed", range(8))
def test_the_rounds_are_the_greedy_choice(seed):
    rng = random.Random(seed)
    count = 60
    groups = [rng.randrange(40) for _ in range(count)]  # rows of one text
    alike = {}
    for _ in range(80):
        a, b = sorted(rng.sample(range(40), 2))
        alike[a, b] = rng.choice([0.8, 0.85, 0.9])
    rank = rng.sample(range(1000), count)
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    edges = {
        (a, b): 1.0 if groups[a] == groups[b] else alike[tuple(sorted((groups[a], groups[b])))]
        for a in range(count)
        for b in range(a + 1, count)
        if groups[a] == groups[b] or tuple(sorted((groups[a], groups[b]))) in alike
    }
    stars = [
        (first[groups[row]], row, 1.0, True) for row in range(count) if row != first[groups[row]]
    ]
    stars += [
        (*sorted((first[a], first[b])), value, False)
        for (a, b), value in alike.items()
        if a in first and b in first
    ]
    pairs = pd.DataFrame(stars, columns=["a", "b", "jaccard", "same"])
    for side in "ab":
        pairs[f"{side}_high"] = np.array(rank, np.uint64)[pairs[side]]
        pairs[f"{side}_low"] = np.uint64(0)
    drops = rounds.resolve(pairs)
    found = {int(row): (int(keeper), value) for row, keeper, value in drops.itertuples(index=False)}
    assert found == greedy(count, edges, rank) and len(found) > 10


def test_no_pairs_no_drops():
    columns = ["a", "b", "jaccard", "same", "a_high", "a_low", "b_high", "b_low"]
    assert len(rounds.resolve(pd.DataFrame(columns=columns))) == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_shards_are_read_in_chunks_and_by_row_on_any_file_system(suffix):
    found = [{"id": i, "text": f"größer {i} " + "x" * (i % 50)} for i in range(500)]
    shards.write(found, f"memory://test_shards{suffix[1:]}/part{suffix}")
    (path,) = shards.find([f"memory://test_shards{suffix[1:]}"])
    chunks = shards.chunks([path], piece=1000)
    got = [item for chunk in chunks for item in shards.read(chunk)]
    assert [row for *_, row in got] == found and len({number for number, *_ in got}) == 500
    assert len(chunks) > 10 or suffix == ".parquet"
    some = [got[i] for i in (499, 3, 77)]
    assert shards.fetch(path, [n for n, *_ in some], [size for _, size, _ in some]) == [
        row for *_, row in some
    ]


def test_shards_that_are_missing_or_cut_off_say_so(tmp_path):
    with pytest.raises(shards.ShardError, match="no shard there"):
        shards.find([str(tmp_path)])
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "tw')
    chunks = shards.chunks(shards.find([str(tmp_path)]))
    with pytest.raises(shards.ShardError, match="byte 16: not JSON .*incomplete"):
        list(shards.read(chunks[0]))
    path.unlink()  # goes away half-way
    with pytest.raises(shards.ShardError, match="is gone since the job began"):
        list(shards.read(chunks[0]))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(shards.ShardError, match="not a whole Parquet file"):
        shards.chunks(shards.find([str(tmp_path)]))


def test_a_shard_is_there_whole_or_not_at_all(tmp_path):
    def breaking():
        yield {"text": "one"}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        shards.write(breaking(), f"file://{tmp_path}/a.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_stays_is_written_as_shards(local, tmp_path, suffix):
    found = [{"id": i, "text": row["text"], "rank": 0} for i, row in enumerate(rows(7))]
    for number in range(2):
        half = found[number * len(found) // 2 : (number + 1) * len(found) // 2]
        shards.write(half, f"file://{tmp_path}/in/part-{number}.jsonl")
    out = f"file://{tmp_path}/out"
    stats = cluster_job.run(
        [f"file://{tmp_path}/in"], out, suffix=suffix, partitions=4, piece=40_000
    )
    drops, _ = near_duplicates.find([row["text"] for row in found])
    gone = set(drops["row"].tolist())
    kept = [row for chunk in shards.chunks(shards.find([out])) for _, _, row in shards.read(chunk)]
    assert kept == [row for i, row in enumerate(found) if i not in gone]
    assert stats["kept"]["rows"] == len(kept) and stats["kept"]["shards"] >= 3
    told = [
        row
        for chunk in shards.chunks(shards.find([f"{out}/drops"]))
        for _, _, row in shards.read(chunk)
    ]
    assert len(told) == len(gone) and all(row["jaccard"] >= 0.8 for row in told)
    with pytest.raises(shards.ShardError, match="name an empty folder"):
        cluster_job.run([f"file://{tmp_path}/in"], out, partitions=4)


def test_a_row_without_the_field_says_which_it_has():
    with pytest.raises(shards.ShardError, match=r"no text in 'text' \(it has body, id\)"):
        cluster_job.text_of({"id": 1, "body": "x"}, "text")


@pytest.mark.cluster
def test_all_of_curation_over_shards_keeps_the_rows_of_00(local, folder, tmp_path, monkeypatch):  # noqa: F811
    with open(folder / "c_third.jsonl", "ab") as handle:
        handle.write(b'{"prompt": "' + b"x" * 200_000 + b'"}\n')  # over max_row_bytes
    curated(folder, tmp_path / "one")
    monkeypatch.setattr(tasks, "evaluation_texts", lambda data: [("toy/1", QUESTION, "87")])
    values = (
        SETTINGS
        | {f"{name}_share": share for name, share in SHARES.items()}
        | {
            "data": "packaged",
            "ngram": 13,
            "near_threshold": 0.8,
            "permutations": 256,
            "template_rows": 50,
        }
    )
    out = f"file://{tmp_path}/many"
    manifest = cluster_curate.run([str(folder)], out, values, piece=10_000, partitions=3)
    for name in splits.SPLITS:
        made = [
            row
            for path in sorted((tmp_path / "many" / name).glob("*.jsonl"))
            for row in read_jsonl(path)
        ]
        alone = list(read_jsonl(tmp_path / f"one/{name}.jsonl"))
        assert sorted(row["id"] for row in made) == [row["id"] for row in alone] and len(alone) > 10
        assert manifest["splits"][name]["rows"] == len(alone)
        by_id = {row["id"]: row for row in made}
        assert all(by_id[row["id"]] | {"origin": ""} == row | {"origin": ""} for row in alone)
    refused = [
        row for path in (tmp_path / "many/rejects").glob("*.jsonl") for row in read_jsonl(path)
    ]
    own = [
        row for row in read_jsonl(tmp_path / "one/rejects.jsonl") if "duplicate" not in row["stage"]
    ]
    assert sorted((row["stage"], row["reason"]) for row in refused) == sorted(
        (r["stage"], r["reason"]) for r in own
    )
    assert "row larger than 100,000 bytes" in {row["reason"] for row in refused}
    assert manifest["counts"]["duplicates"] == 51 and manifest["counts"]["raw"] == 357
    with pytest.raises(shards.ShardError, match="name an empty folder"):
        cluster_curate.run([str(folder)], out, values)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("s3://bucket/dolly-00001-of-00004.parquet", "dolly"),
        ("file:///a/gsm8k.jsonl", "gsm8k"),
        ("file:///raw/metamath/train-00001.jsonl", "metamath"),
        ("file:///raw/orca/000.jsonl", "orca"),
        ("file:///raw/wizard_70k.jsonl", "wizard_70k"),
    ],
)
def test_shards_belong_to_sources(path, source):
    assert cluster_curate.source_of(path) == source
