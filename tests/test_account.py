"""The account of 00: its tables say what was counted, and none is wider than a phone."""

from pathlib import Path

import pytest

from lib.curation import account, audit, curate

COUNTS = [
    {"source": "a", "raw": 10, **dict.fromkeys(curate.STAGES, 1), "kept": 3},
    {"source": "b", "raw": 10, **dict.fromkeys(curate.STAGES, 0), "kept": 10},
    {"source": "empty", "raw": 0, **dict.fromkeys(curate.STAGES, 0), "kept": 0},
    {"source": "all", "raw": 20, **dict.fromkeys(curate.STAGES, 1), "kept": 13},
]
STATS = {
    "texts": 1000,
    "cpu_seconds": {"compare": 3.6},
    "sketches_compared": 2000,
    "pairs_alike": 100,
    "bands": 32,
    "rows": 8,
    "threshold": 0.8,
}


def test_two_narrow_tables_hold_every_column_of_the_wide_one():
    first, second = account.stages(COUNTS)
    assert max(len(first[0]), len(second[0])) <= 6
    assert [a | b for a, b in zip(first, second, strict=True)] == COUNTS


def test_the_worst_source_loses_most_and_none_with_rows_is_overlooked():
    assert account.worst(COUNTS[:2] + COUNTS[3:])["source"] == "a"


def test_lists_in_sentences():
    assert account.listed({"a": 1, "b": 2000}) == "a 1, b 2,000"
    assert account.listed({"a, b": 1, "c": 2}, "; ") == "a, b 1; c 2"


def test_clusters_fall_into_classes_and_none_is_lost():
    sizes = {2: 5, 3: 4, 6: 1, 9: 1, 10: 2, 500: 1}
    bins = account.binned(sizes)
    assert bins == {"2": 5, "3": 4, "4": 0, "5": 0, "6-9": 2, "10-19": 2, "20+": 1}


def test_what_other_sizes_need_grows_as_the_model_says():
    rows = account.projected(STATS, 500.0, (1000, 10_000))
    table = {row["documents"]: row for row in rows}
    assert all(len(row) <= 6 for row in rows)
    assert table["CPU hours"]["1,000"] == "0.001"  # as measured: 3.6 seconds
    assert float(table["CPU hours"]["10,000"]) == pytest.approx(0.01, rel=0.01)  # and sketches
    assert table["text GB"]["10,000"] == "0.005"
    assert account.projected({}, 500.0) == [] and account.projected({"texts": 5}, 1.0) == []


def test_the_time_table_ends_with_the_sum():
    marks = [("start", (0.0, 0.0)), ("one", (2.0, 1.0)), ("two", (5.0, 3.0))]
    rows = account.took(marks, 1_000_000)
    assert [row["step"] for row in rows] == ["one", "two", "all"]
    assert rows[-1] == {"step": "all", "seconds": 5.0, "CPU seconds": 3.0, "us a row": 3}


def test_the_figure_shows_every_stage(tmp_path):
    import matplotlib.pyplot as plt

    figure = account.figure(COUNTS, {2: 5, 30: 1}, STATS)
    shown = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert shown == {"kept", *curate.STAGES}
    figure.savefig(Path(tmp_path) / "figure.png")
    plt.close(figure)


def test_nothing_injected_is_not_measured():
    assert not audit.pooled([]) and audit.least_found([]) is None
    assert f"{audit.pooled([])}" == "not measured"
    assert audit.second_opinion([]) == ({}, [])
