"""Is an answer right, and which answers are the same answer?"""

from __future__ import annotations


def grade(item: dict, text: str) -> dict:
    """{"correct": bool or None, "answer": canonical answer or None, "extractor": str, "reason": str} for one text."""
    raise NotImplementedError


def answer_classes(item: dict, texts: list[str]) -> list[int]:
    """Equivalence class of each text's answer; -1 where no answer could be read."""
    raise NotImplementedError


def grade_all(items: list[dict], texts_per_item: list[list[str]]):
    """DataFrame of `grade` for every text of every item."""
    raise NotImplementedError
