"""The greedy choice in rounds over near-duplicate pairs, as `lib.cluster.near_duplicates` finds
them: arrays, no recursion.

A class is all rows of one text. It is kept when every better class that is alike has been dropped,
and dropped when one of them is kept: what going through the rows in order of priority gives,
decided for many rows at once.
"""

from __future__ import annotations


def resolve(pairs):
    """Drops (DataFrame of row, keeper, jaccard, by row) of near-duplicate pairs.

    pairs: DataFrame of a < b (keys of rows), jaccard, same (are the texts equal; then a is the
    first row of that text) and the priorities a_high, a_low, b_high, b_low (lower is better; the
    smaller key on a tie). The keeper is the most alike kept row that is better, the best of them on
    a tie."""
    import numpy as np
    import pandas as pd

    if not len(pairs):
        return pd.DataFrame(
            {
                "row": np.empty(0, np.uint64),
                "keeper": np.empty(0, np.uint64),
                "jaccard": np.empty(0),
            }
        )
    ends = [pairs[[side, f"{side}_high", f"{side}_low"]].to_numpy(np.uint64) for side in "ab"]
    known = np.unique(np.concatenate(ends), axis=0)
    rows = known[:, 0]
    rank = np.empty(len(rows), np.int64)
    rank[np.lexsort((rows, known[:, 2], known[:, 1]))] = np.arange(len(rows))
    a, b = (np.searchsorted(rows, end[:, 0]) for end in ends)
    same, value = pairs["same"].to_numpy(bool), pairs["jaccard"].to_numpy(float)
    group = np.arange(len(rows))
    group[b[same]] = a[same]  # the first row of equal texts stands for all of them in every bucket
    best = np.arange(len(rows))  # of a class: its best row
    by_rank = np.argsort(-rank)
    best[group[by_rank]] = by_rank  # the last one written is the best
    one, other, value = group[a[~same]], group[b[~same]], value[~same]
    swap = rank[best[one]] > rank[best[other]]
    better, worse = np.where(swap, other, one), np.where(swap, one, other)
    kept, dropped = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    while True:
        dropped[worse[kept[better]]] = True
        waits = np.zeros(len(rows), bool)
        waits[worse[~kept[better] & ~dropped[better]]] = True
        ready = ~kept & ~dropped & ~waits
        if not ready.any():
            break
        kept[ready] = True
    found = []
    lost = np.flatnonzero(
        best[group] != np.arange(len(rows))
    )  # other rows of a class whose best row stays
    lost = lost[kept[group[lost]]]
    found.append(pd.DataFrame({"row": lost, "keeper": best[group[lost]], "jaccard": 1.0}))
    members = pd.DataFrame({"group": group, "row": np.arange(len(rows))})
    for mine, theirs in ((one, other), (other, one)):
        stays = kept[theirs]
        some = pd.DataFrame(
            {"group": mine[stays], "keeper": best[theirs[stays]], "jaccard": value[stays]}
        )
        found.append(some.merge(members, on="group")[["row", "keeper", "jaccard"]])
    every = pd.concat(found, ignore_index=True)
    every["rank"] = rank[every["keeper"].to_numpy(int)]
    every = every[every["rank"] < rank[every["row"].to_numpy(int)]]
    every = every.sort_values(
        ["row", "jaccard", "rank"], ascending=[True, False, True]
    ).drop_duplicates("row")
    return pd.DataFrame(
        {
            "row": rows[every["row"]],
            "keeper": rows[every["keeper"]],
            "jaccard": every["jaccard"].to_numpy(float),
        }
    )
