"""Near-duplicates of 00 by the engine that its parameter names: this machine, or a Ray cluster."""

from __future__ import annotations

from functools import partial

from lib.cluster import near_duplicates, session, shards
from lib.curation import curate

ENGINES = ("local", "ray")


def deduplicate(stage: curate.Stage, engine="local", workers: int = 1, address="", **options):
    """(exact, near, stats) of `curate.deduplicate`; the same rows go whatever the engine.

    engine: "local" with `workers` signing threads, or "ray", the job of
    `lib.cluster.near_duplicates` on the cluster at an address or on `workers` processes of this
    machine. options: threshold, permutations and the rest, as both take them. ValueError for
    another engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} must be local or ray")
    if engine == "local":
        return curate.deduplicate(stage, workers=workers, **options)
    session.start(address, workers)
    return curate.deduplicate(stage, search=partial(on_ray, stage), **options)


def on_ray(stage: curate.Stage, exact, **options):
    """(near, stats) of the rows that are not in `exact`, from the stage files. Needs a Ray."""
    import numpy as np
    import pandas as pd

    # what the job calls each row
    keys = stage.source.astype(np.int64) << shards.NUMBER | stage.offsets
    drops, stats = near_duplicates.find(
        [f"file://{path.resolve()}" for path in stage.paths],
        curate.evidence,
        curate.importance,
        skip=frozenset(keys[exact["row"].to_numpy(np.int64)].tolist()),
        **options,
    )
    place = {
        column: np.searchsorted(keys, drops[column].to_numpy(np.int64))
        for column in ("row", "keeper")
    }
    return pd.DataFrame(place | {"jaccard": drops["jaccard"].to_numpy(float)}), stats
