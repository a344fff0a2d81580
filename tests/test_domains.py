"""Domains: the three steps that sort by subject read one table, and it says nothing untrue."""

from lib import domains
from lib.curation import filters
from lib.distillation import pool
from lib.evaluation import grade, tasks


def test_the_three_users_read_the_same_table():
    assert tasks.CATEGORIES is domains.CATEGORIES
    assert filters.DOMAINS is domains.TAGS and pool.SOURCES is domains.POOL


def test_names_and_their_order_are_those_of_every_record_so_far():
    wanted = ("math", "code", "reasoning", "knowledge", "instruction", "creativity")
    assert wanted == domains.CATEGORIES
    assert domains.TAGS == ("code", "math", "science", "creative", "reasoning", "conversation")
    assert list(domains.POOL.items()) == [
        ("generated", 6), ("knowledge", 2), ("code", 1), ("curated", 2), ("files", 6),
    ]  # fmt: skip


def test_every_tag_source_and_checker_exists():
    tags = {entry["tag"] for entry in domains.DOMAINS.values()} - {""}
    assert tags == set(domains.TAGS) == {*filters.PATTERNS, "conversation"}
    sources = {name for entry in domains.DOMAINS.values() for name in entry["pool"]}
    assert sources == set(domains.POOL)
    checkers = {name for entry in domains.DOMAINS.values() for name in entry["checkers"]}
    assert checkers == set(grade._CHECKERS)


def test_items_are_checked_as_the_table_says():
    for item in tasks.load_items("packaged", list(tasks.CATEGORIES), 40, 1):
        assert item["checker"] in domains.DOMAINS[item["category"]]["checkers"]
