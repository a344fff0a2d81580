"""What each system was asked and said, row by row: a file for programs, a page for readers.

The page runs no script: radio buttons and `:has()` of CSS filter its rows. A text of a model, or of
a data set, is always text there.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from lib.files import atomic_write_text, content_hash, replacing, whole
from lib.workbook import page

PAGE_BYTES = 1_000_000  # of all rows of a page; its head and style add a few kB
TEXT_CHARACTERS = 4_000  # of one prompt or answer on the page; the file has all of it
SEED = "transcripts"  # part of the hash that orders the rows of a sample
FILTERS = ("system", "category", "verdict")
BADGES = {"right": "pass", "wrong": "FAIL"}  # verdict: CSS class of its badge
# NUL and its like, which HTML drops or forbids, as the pictures Unicode has for them
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


def write(out: Path, step: str, rows: list[dict]) -> Path:
    """Write artifacts/<step>/transcripts.jsonl (all rows) and transcripts/<step>.html; its path.

    rows: {system, category, task, prompt, gold, text, extracted, verdict}, as
    `lib.evaluation.answers.transcripts` returns them. Rows that exceed PAGE_BYTES are sampled.
    """
    with replacing(out / "artifacts" / step / "transcripts.jsonl") as file:
        # ASCII escapes keep half a surrogate pair, which UTF-8 cannot
        file.writelines(json.dumps(row) + "\n" for row in rows)
    target = out / "transcripts" / f"{step}.html"
    atomic_write_text(target, html(out, step, rows))
    return target


def html(out: Path, step: str, rows: list[dict]) -> str:
    """The page: what was sampled, the filters, then a row an answer, those of a prompt together."""
    values = {key: list(dict.fromkeys(str(row[key]) for row in rows)) for key in FILTERS}
    shown = sample(rows, lambda row: len(article(row, values).encode()), PAGE_BYTES)
    links = [f'<a href="../index.html">Run {escape(out.name)}</a>']
    if (out / f"{step}.ipynb").exists() or (out / f"{step}.partial.ipynb").exists():
        links.append(f'<a href="../html/{step}.html">its notebook</a>')
    head = f'<p class="note">{" · ".join(links)}</p>\n<h1>{escape(step)}: transcripts</h1>'
    note = f'<p class="note">{escape(_extent(step, rows, shown))}</p>'
    groups = "\n".join(_choices(key, values[key], shown) for key in FILTERS)
    body = "\n".join(article(row, values) for row in in_reading_order(shown))
    parts = (head, note, f'<div class="filters">\n{groups}\n</div>', body, '<p class="count"></p>')
    title = f"{step}: transcripts ({out.name})"
    return page.document(title, "\n".join(parts), _style(values), kind="transcripts")


def sample(rows: list[dict], size, limit: int) -> list[dict]:
    """Rows of at most `limit` in all: equal parts a system and verdict, chosen by a prompt's hash.

    size: bytes of a row on the page. Where a part has no more rows, the others get its place.
    """
    parts: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=_order):
        parts.setdefault((row["system"], row["verdict"]), []).append(row)
    chosen, used = [], 0
    for turn in range(max(map(len, parts.values()), default=0)):
        for part in parts.values():
            if turn >= len(part):
                continue
            used += size(part[turn])
            if used > limit:
                return chosen
            chosen.append(part[turn])
    return chosen


def _order(row: dict) -> str:
    return content_hash(SEED, row["prompt"])


def in_reading_order(rows: list[dict]) -> list[dict]:
    """By category, then prompt; the systems that answered it stay in the order they came in."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    return sorted(
        rows,
        key=lambda row: (str(row["category"]), _order(row), systems.index(row["system"])),
    )


def _extent(step: str, rows: list[dict], shown: list[dict]) -> str:
    file = f"artifacts/{step}/transcripts.jsonl"
    if len(shown) == len(rows):
        return f"All {len(rows):,} rows; as a file: {file}."
    return (
        f"{len(shown):,} of {len(rows):,} rows, by hash of the prompt, equal parts a system and"
        f" verdict as far as there are rows; all of them: {file}."
    )


def _choices(key: str, values: list[str], rows: list[dict]) -> str:
    """One group of radio buttons; nothing where there is nothing to choose."""
    if len(values) < 2:
        return ""
    buttons = [f'<label><input type="radio" name="{key}" checked>all</label>']
    for number, value in enumerate(values):
        count = sum(str(row[key]) == value for row in rows)
        buttons.append(
            f'<label><input type="radio" name="{key}" id="{key}{number}">'
            f"{text(value)} <small>{count:,}</small></label>"
        )
    return f"<fieldset><legend>{key}</legend>{''.join(buttons)}</fieldset>"


def _style(values: dict[str, list[str]]) -> str:
    """A rule a choice: while it is checked, rows of another value are not there."""
    rules = [
        f"body:has(#{key}{number}:checked) article:not(.{key}{number}) {{ display: none }}"
        for key in FILTERS
        for number in range(len(values[key]))
    ]
    return "\n".join(rules) + "\n"


def article(row: dict, values: dict[str, list[str]]) -> str:
    """One row as HTML; its classes are places in `values`, never words of the row."""
    classes = " ".join(f"{key}{values[key].index(str(row[key]))}" for key in FILTERS)
    verdict = f'<span class="badge {BADGES.get(row["verdict"], "")}">{text(row["verdict"])}</span>'
    where = f"{text(row['category'])}, {text(row['task'])}"
    fields = [("prompt", row["prompt"]), ("answer", row["text"])]
    fields += [("extracted", row["extracted"]), ("gold", row["gold"])]
    blocks = "".join(
        f"<dt>{name}</dt><dd><pre>\n{text(value)}</pre></dd>"
        for name, value in fields
        if value not in (None, "", [])
    )
    return (
        f'<article class="{classes}"><p>{verdict} <b>{text(row["system"])}</b> {where}</p>'
        f"<dl>{blocks}</dl></article>"
    )


def text(value) -> str:
    """A value as HTML text: escaped, cut at TEXT_CHARACTERS, without what HTML cannot hold."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(plain) > TEXT_CHARACTERS:
        more = len(plain) - TEXT_CHARACTERS
        plain = f"{plain[:TEXT_CHARACTERS]} [... {more:,} more characters]"
    return escape(whole(plain).translate(CONTROLS))
