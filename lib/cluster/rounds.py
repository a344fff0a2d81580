"""The greedy choice in rounds over near-duplicate pairs of `lib.cluster.near_duplicates`.

A class is all rows of one text. It is kept when every better class that is alike has been dropped,
and dropped when one of them is kept: what going through the rows in order of priority gives,
decided for many rows at once, with arrays and no recursion.
"""

from __future__ import annotations


def resolve(pairs):
    """Drops (DataFrame of row, keeper, jaccard, by row) of near-duplicate pairs.

    pairs: DataFrame of a < b (keys of rows), jaccard, same (are the texts equal; then a is the
    first row of that text) and the priorities a_high, a_low, b_high, b_low (lower is better; the
    smaller key on a tie). The keeper is the most alike kept row that is better, the best of them on
    a tie.
    """
    import numpy as np
    import pandas as pd

    if not len(pairs):
        none = np.empty(0, np.uint64)
        return pd.DataFrame({"row": none, "keeper": none, "jaccard": np.empty(0)})
    rows, rank, (a, b) = _ranked(pairs)
    same, similarity = pairs["same"].to_numpy(bool), pairs["jaccard"].to_numpy(float)
    group = np.arange(len(rows))
    group[b[same]] = a[same]  # the first row of equal texts stands for all of them in every bucket
    best = np.arange(len(rows))  # of a class: its best row
    by_rank = np.argsort(-rank)
    best[group[by_rank]] = by_rank  # the last one written is the best
    one, other, similarity = group[a[~same]], group[b[~same]], similarity[~same]
    swap = rank[best[one]] > rank[best[other]]
    kept = _kept(np.where(swap, other, one), np.where(swap, one, other), len(rows))
    pairs = _keepers(group, best, kept, one, other, similarity)
    pairs["rank"] = rank[pairs["keeper"].to_numpy(int)]
    pairs = pairs[pairs["rank"] < rank[pairs["row"].to_numpy(int)]]
    pairs = pairs.sort_values(["row", "jaccard", "rank"], ascending=[True, False, True])
    first = pairs.drop_duplicates("row")
    return pd.DataFrame(
        {
            "row": rows[first["row"]],
            "keeper": rows[first["keeper"]],
            "jaccard": first["jaccard"].to_numpy(float),
        }
    )


def _ranked(pairs):
    """(keys of the rows, sorted; rank of each, 0 the best; places of a and of b among them)."""
    import numpy as np

    ends = [pairs[[side, f"{side}_high", f"{side}_low"]].to_numpy(np.uint64) for side in "ab"]
    known = np.unique(np.concatenate(ends), axis=0)
    rows = known[:, 0]
    rank = np.empty(len(rows), np.int64)
    rank[np.lexsort((rows, known[:, 2], known[:, 1]))] = np.arange(len(rows))
    return rows, rank, [np.searchsorted(rows, end[:, 0]) for end in ends]


def _kept(better, worse, count: int):
    """Which of `count` classes stay, given the two of each pair that are alike."""
    import numpy as np

    kept, dropped = np.zeros(count, bool), np.zeros(count, bool)
    while True:
        dropped[worse[kept[better]]] = True
        waits = np.zeros(count, bool)
        waits[worse[~kept[better] & ~dropped[better]]] = True
        ready = ~kept & ~dropped & ~waits
        if not ready.any():
            return kept
        kept[ready] = True


def _keepers(group, best, kept, one, other, similarity):
    """Rows beside kept ones that are alike: DataFrame of row, keeper, jaccard, in any rank."""
    import numpy as np
    import pandas as pd

    lost = np.flatnonzero(best[group] != np.arange(len(group)))
    lost = lost[kept[group[lost]]]  # other rows of a class whose best row stays
    parts = [pd.DataFrame({"row": lost, "keeper": best[group[lost]], "jaccard": 1.0})]
    members = pd.DataFrame({"group": group, "row": np.arange(len(group))})
    for goes, keeper in ((one, other), (other, one)):
        stays = kept[keeper]
        pairs = pd.DataFrame(
            {"group": goes[stays], "keeper": best[keeper[stays]], "jaccard": similarity[stays]}
        )
        parts.append(pairs.merge(members, on="group")[["row", "keeper", "jaccard"]])
    return pd.concat(parts, ignore_index=True)
