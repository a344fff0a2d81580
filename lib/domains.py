"""What a domain is, for all rooms: its names, where its questions come from, how it is checked.

Three steps sort by subject, each for its own purpose: 12 reports in categories, 00 tags rows for
balance, 17 draws questions to fail at. A domain may stand in one and not in the others. An empty
string or tuple says so.
"""

from __future__ import annotations

# category: its name in the tables of 12 to 16. tag: its name in the rows of 00. pool: the sources
# of 17 that hold such questions. checkers: of `lib.evaluation.grade`, which decide an item.
DOMAINS = {
    "math": {
        "category": "math",
        "tag": "math",
        "pool": ("generated", "curated", "files"),
        "checkers": ("math", "reasoning_gym"),
        "checked": "by equivalence of the final number or expression, or the generator's verifier",
    },
    "code": {
        "category": "code",
        "tag": "code",
        "pool": ("code", "files"),
        "checkers": ("code",),
        "checked": "by running the task's tests in the sandbox",
    },
    "reasoning": {
        "category": "reasoning",
        "tag": "reasoning",
        "pool": ("generated", "files"),
        "checkers": ("reasoning_gym", "choice", "math", "exact"),
        "checked": "by the generator's verifier, the letter of a choice, or the exact short answer",
    },
    "knowledge": {
        "category": "knowledge",
        "tag": "",
        "pool": ("knowledge",),
        "checkers": ("choice",),
        "checked": "by the letter of a choice",
    },
    "instruction": {
        "category": "instruction",
        "tag": "",
        "pool": (),
        "checkers": ("constraints",),
        "checked": "by the constraints that the instruction states, each a function of the text",
    },
    "creativity": {
        "category": "creativity",
        "tag": "creative",
        "pool": (),
        "checkers": ("open",),
        "checked": "by a judge in both orders; without one it is not graded",
    },
    "science": {
        "category": "",
        "tag": "science",
        "pool": (),
        "checkers": (),
        "checked": "not at all: only a tag of training rows",
    },
    "conversation": {
        "category": "",
        "tag": "conversation",
        "pool": (),
        "checkers": (),
        "checked": "not at all: the tag of training rows that no pattern claims",
    },
    # Tool use: the plan has a modifier for it (30_modifier.automation) and a gate. There is no data
    # for it yet and no checker: nothing here asks for it, tags it, or can grade it.
    "automation": {
        "category": "",
        "tag": "",
        "pool": (),
        "checkers": (),
        "checked": "not yet: there is neither data nor a checker",
    },
}

# categories in the order of every table of 12 to 16
CATEGORIES = tuple(entry["category"] for entry in DOMAINS.values() if entry["category"])

# tags of 00: of two that match a row equally well the earlier one wins, the last is for the rest
TAGS = ("code", "math", "science", "creative", "reasoning", "conversation")

# sources of 17's pool: questions that each gives in its turn
POOL = {"generated": 6, "knowledge": 2, "code": 1, "curated": 2, "files": 6}
