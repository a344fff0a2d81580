"""Clusters of failures: how many, from which vectors, how stable, how pure, and their names."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from lib import plots, stats
from lib.distillation import teacher

LABEL_SHOTS = 6  # failures of a cluster that are shown to the model that names it
MANY = 5000  # items from which a second thread is worth its waiting
SHARE = 0.8  # of the items in each resample of the stability measure


def numbers_to_try(n: int, least: int, most: int, per_cluster: int) -> list[int]:
    """Numbers of clusters, `least` to `most`, that leave `per_cluster` items to each on average.

    With too few items for even `least`, the one largest number that leaves so many, at least 1.
    """
    fitting = [k for k in range(least, most + 1) if k * per_cluster <= n]
    return fitting or [max(1, min(least - 1, n // per_cluster))]


def kmeans(vectors, k: int, seed: int, starts: int = 4):
    """A fitted KMeans with k clusters; the same vectors and seed give the same one."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if len(vectors) < MANY else None):
        return KMeans(k, n_init=starts, random_state=seed).fit(vectors)


def resampled(
    vectors, k: int, resamples: int, seed: int, known: list[str] | None = None
) -> dict[str, list[float]]:
    """{"stability", and "agreement" with `known` labels}: a value for each pair of random subsets.

    stability: adjusted Rand index (Hubert and Arabie 1985) of the two clusterings on what the
    subsets share. agreement: adjusted mutual information (Vinh et al. 2010) of the clusterings with
    the known labels, mean of the two. Of both, 1 is the same partition and 0 what chance would
    give.
    """
    import numpy as np
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    rng, size = np.random.default_rng(seed), min(len(vectors), max(k, round(SHARE * len(vectors))))
    values: dict[str, list[float]] = {"stability": [], "agreement": []}
    for number in range(resamples):
        labels, matched = [], []
        for part in (rng.choice(len(vectors), size, replace=False) for _ in range(2)):
            clusters = np.full(len(vectors), -1)
            clusters[part] = kmeans(vectors[part], k, seed + number, 2).labels_
            labels.append(clusters)
            if known:
                matched.append(adjusted_mutual_info_score([known[i] for i in part], clusters[part]))
        both = (labels[0] >= 0) & (labels[1] >= 0)
        values["stability"].append(float(adjusted_rand_score(labels[0][both], labels[1][both])))
        if known:
            values["agreement"].append(sum(matched) / 2)
    return values


def choose_k(
    vectors, ks: list[int], resamples: int, seed: int, known: list[str] | None = None
) -> tuple[int, list]:
    """(k, rows): the k with the highest silhouette + mean stability; rows hold both for every k.

    silhouette: Rousseeuw 1987, mean over the items, -1 to 1; absent where it does not exist (k 1,
    or one a cluster).
    """
    from sklearn.metrics import silhouette_score

    rows = []
    for k in ks:
        labels = kmeans(vectors, k, seed).labels_
        row = {"k": k, **resampled(vectors, k, resamples, seed, known)}
        row["mean"] = sum(row["stability"]) / resamples
        if 1 < len(set(labels)) < len(vectors):
            size = min(len(vectors), 5000)
            score = silhouette_score(vectors, labels, sample_size=size, random_state=seed)
            row["silhouette"] = float(score)
        rows.append(row)
    return max(rows, key=lambda row: row["mean"] + row.get("silhouette", 0.0))["k"], rows


def compare_vectors(
    vectors_of: dict, known: list[str], ks: list[int], weight: float, resamples: int, seed: int
) -> tuple[str, list[dict]]:
    """(method, rows): which vectors to cluster, the rows with all that was tried.

    Score = weight x stability + (1 - weight) x agreement, each method at its own best k.
    vectors_of: {method: array of the items to fit}; known: their task labels.
    """
    rows = []
    for method, vectors in vectors_of.items():
        k, tried = choose_k(vectors, ks, resamples, seed, known)
        chosen = next(row for row in tried if row["k"] == k)
        row = {
            name: stats.mean_ci(chosen[name], seed, bounds=(-1.0, 1.0), unit=unit)
            for name, unit in (("stability", "ARI"), ("agreement", "AMI"))
        }
        score = weight * row["stability"]["value"] + (1 - weight) * row["agreement"]["value"]
        rows.append(
            {
                "method": method,
                "k": k,
                "silhouette": chosen.get("silhouette"),
                "tried": tried,
                **row,
                "score": score,
            }
        )
    return max(rows, key=lambda row: row["score"])["method"], rows


def comparison(rows: list[dict]) -> list[dict]:
    """The rows of `compare_vectors` for a reader."""
    return [
        {
            "vectors": row["method"],
            "clusters": row["k"],
            "silhouette": f"{row['silhouette'] or 0:.3f}",
            "stability": row["stability"],
            "agreement": row["agreement"],
            "score": f"{row['score']:.3f}",
        }
        for row in rows
    ]


def tried(row: dict) -> list[dict]:
    """The numbers of clusters that one row of `compare_vectors` was tried with, for a reader."""
    return [
        {
            f"clusters of {row['method']} vectors": attempt["k"],
            "silhouette": f"{attempt.get('silhouette', 0):.2f}",
            "stability, mean": f"{attempt['mean']:.2f}",
        }
        for attempt in row["tried"]
    ]


def purity(labels, known: list[str], majority: dict[int, str]) -> dict:
    """Share of items that carry the majority label of their cluster, with Wilson's interval."""
    right = sum(majority.get(int(label)) == name for label, name in zip(labels, known, strict=True))
    return stats.proportion(right, len(known))


def majorities(labels, known: list[str]) -> dict[int, str]:
    """{cluster: its most frequent known label}; of equally frequent ones the alphabet's first."""
    groups: dict[int, Counter] = {}
    for label, name in sorted(zip(map(int, labels), known, strict=True)):
        groups.setdefault(label, Counter())[name] += 1
    return {label: count.most_common(1)[0][0] for label, count in groups.items()}


def chance_purity(labels, known: list[str], seed: int, times: int = 200) -> float:
    """Mean purity with the known labels dealt out at random: what these sizes get for nothing."""
    rng, names, total = random.Random(seed), list(known), 0.0
    for _ in range(times):
        rng.shuffle(names)
        majority = majorities(labels, names)
        pairs = zip(labels, names, strict=True)
        total += sum(majority[int(label)] == name for label, name in pairs) / len(names)
    return total / times


def distinctive_terms(texts: list[str], labels, most: int = 4) -> dict[int, list[str]]:
    """The terms that set each cluster apart: class-based TF-IDF (Grootendorst 2022).

    Weight: tf x log(1 + A / f). All texts of a cluster are one document; A is the mean number of
    words a cluster, f a word's count in all.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    present = sorted(set(map(int, labels)))
    joined = [
        " ".join(text for text, cluster in zip(texts, labels, strict=True) if cluster == label)
        for label in present
    ]
    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    try:
        counts = vectorizer.fit_transform(joined).toarray().astype(float)
    except ValueError:  # nothing but stop words and numbers
        return {label: [] for label in present}
    frequency = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    weights = frequency * np.log1p(counts.sum(1).mean() / counts.sum(0))
    names = vectorizer.get_feature_names_out()
    return {
        label: [str(names[i]) for i in np.argsort(-row, kind="stable")[:most] if row[i] > 0]
        for label, row in zip(present, weights, strict=True)
    }


def named_by_model(groups: dict[int, list[dict]], ask: Callable) -> dict[int, str]:
    """{cluster: name} for the clusters that a model named, shown LABEL_SHOTS failures of each.

    groups: {cluster: its failed rows}; ask: `Client.chat` or a function like it.
    """
    requests = [teacher.label_request(rows[:LABEL_SHOTS]) for rows in groups.values()]
    replies = ask(requests, teacher.parse_label, "labels")
    pairs = zip(groups, replies, strict=True)
    return {number: reply["value"] for number, reply in pairs if "value" in reply}


def overview(
    labels, tasks: list[str], is_aside: list[bool], titles: dict[int, str], majority: dict[int, str]
) -> list[dict]:
    """A row a cluster: name, failures, how many are set aside, most frequent task, purity."""
    rows = []
    for number, title in titles.items():
        members = [place for place, label in enumerate(labels) if label == number]
        pure = purity([number] * len(members), [tasks[place] for place in members], majority)
        rows.append(
            {
                "cluster": number,
                "name": title,
                "failures": len(members),
                "set aside": sum(is_aside[place] for place in members),
                "most frequent task": majority[number],
                "purity": pure,
            }
        )
    return rows


def map_points(vectors, seed: int):
    """Two coordinates an item for a picture.

    t-SNE (van der Maaten and Hinton 2008), or PCA for fewer than 20 items.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < 20 or vectors.shape[1] < 3:
        return PCA(min(2, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30, (len(vectors) - 1) // 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def figure(points, labels, aside, names: dict[int, str], title: str):
    """The map: one mark an item by cluster, hollow where set aside; distances mean little."""
    import numpy as np

    fig, axes = plots.figure(width=10.5, height=5)
    labels, aside = np.asarray(labels), np.asarray(aside, dtype=bool)
    points = np.column_stack([points, np.zeros(len(points))])[:, :2]
    for place, label in enumerate(sorted(set(labels.tolist()))):
        colour, mark = plots.CYCLE[place % len(plots.CYCLE)], "os^D"[place // len(plots.CYCLE) % 4]
        members = labels == label
        style = {"color": colour, "markersize": 5, "alpha": 0.8, "linestyle": ""}
        legend = f"{label}: {names[label]} ({members.sum()})"
        axes.plot(*points[members & ~aside].T, mark, label=legend, **style)
        axes.plot(*points[members & aside].T, mark, markerfacecolor="none", **style)
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        title="cluster (failures); hollow: set aside",
        title_fontsize=8,
        alignment="left",
    )
    return fig
