"""Blocks of a report as Markdown and as one self-contained HTML page.

No script, no request to anywhere. A block is one of

    ("h2", text), ("lead", text), ("p", text), ("note", text)
    ("table", columns, rows)           a cell is text, a Link, a Badge, a Strong, or a list of those
    ("figure", path, caption)          a path relative to the folder of the page
    ("details", cell, blocks)          folded: the cell is what is seen before a click
    ("anchor", name)                   a place that a Link may point at
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from html import escape as _escape
from itertools import zip_longest
from pathlib import Path

# what a browser may load for a page of a record: nothing but the pictures and style inside it
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'"
)


@dataclass(frozen=True)
class Link:
    text: str
    href: str


@dataclass(frozen=True)
class Badge:
    """A verdict or a status; `kind`: its CSS class; `more` stands behind it; `href`: a place."""

    text: str
    kind: str
    more: str = ""
    href: str = ""


@dataclass(frozen=True)
class Strong:
    """A line of its own, in bold, at the head of a cell."""

    text: str


def escape(text: str) -> str:
    """HTML text in which a number stays on one line with its per cent sign, or its n."""
    return re.sub(r"(?<=\bn) (?=\d)| (?=%)", "\u00a0", _escape(text))


def unbroken(body: str) -> str:
    """HTML whose numbers stay with their per cent sign, but for what stands verbatim in <pre>."""
    parts = re.split(r"(<pre.*?</pre>)", body, flags=re.DOTALL)
    prose = (re.sub(r"(?<=\d) (?=%)", "\u00a0", part) for part in parts[::2])
    return "".join(text for pair in zip_longest(prose, parts[1::2], fillvalue="") for text in pair)


def boxed(body: str) -> str:
    """HTML whose tables scroll in a box of their own, so that a narrow page does not."""
    return body.replace("<table", '<div class="out"><table').replace("</table>", "</table></div>")


def document(title: str, body: str, style: str = "", kind: str = "") -> str:
    """A whole HTML page around `body`. style: CSS after that of page.css; kind: class of main."""
    common = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{common}{style}</style>
</head>
<body>
<main class="{kind}">
{body}
</main>
</body>
</html>
"""


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def html(title: str, blocks: list[tuple], folder: Path) -> str:
    """The page as HTML; pictures, given relative to `folder`, are embedded."""
    return document(title, f"<h1>{escape(title)}</h1>\n{_html_blocks(blocks, folder)}")


def _html_blocks(blocks: list[tuple], folder: Path) -> str:
    """The blocks as HTML; figures that follow each other share a row."""
    parts: list[str] = []
    for number, (kind, *rest) in enumerate(blocks):
        if kind == "figure":
            first = number == 0 or blocks[number - 1][0] != "figure"
            last = number + 1 == len(blocks) or blocks[number + 1][0] != "figure"
            opening, closing = '<div class="figures">' * first, "</div>" * last
            parts.append(opening + _html_figure(*rest, folder) + closing)
        elif kind == "table":
            parts.append(_html_table(*rest))
        elif kind == "details":
            summary, inner = rest
            body = _html_blocks(inner, folder)
            parts.append(f"<details><summary>{_html_inline(summary)}</summary>\n{body}</details>")
        elif kind == "h2":
            parts.append(f"<h2>{escape(rest[0])}</h2>")
        elif kind == "anchor":
            parts.append(f'<a id="{escape(rest[0])}"></a>')
        else:
            parts.append(f'<p class="{kind}">{escape(rest[0])}</p>')
    return "\n".join(parts)


def _html_figure(path: str, caption: str, folder: Path) -> str:
    return (
        f'<figure><img alt="{escape(caption)}" src="{data_uri(folder / path)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _html_table(columns: list[str], rows: list[list]) -> str:
    """On a narrow screen a row becomes a card: its first cell is the title, others are labelled."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    labels = [escape(column.partition(" [")[0]) for column in columns]
    body = ""
    for row in rows:
        cells = "".join(
            f'<td data-column="{label}"{_width(cell)}><div>{_html_inline(cell)}</div></td>'
            for label, cell in zip(labels, row, strict=True)
        )
        body += f"<tr{' class=total' if row[0] == 'total' else ''}>{cells}</tr>\n"
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="box"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _width(cell) -> str:
    """Short cells keep to one line; in a card long ones need no label and empty ones no place."""
    text = cell if isinstance(cell, str) else getattr(cell, "text", "")
    if cell in ("", []):
        return " class=empty"
    if isinstance(cell, list) and isinstance(cell[0], Strong) or len(text) > 60:
        return " class=wide"
    return " class=tight" if text and not isinstance(cell, Badge) and len(text) < 34 else ""


def _html_inline(cell) -> str:
    if isinstance(cell, list):
        return " ".join(map(_html_inline, cell))
    if isinstance(cell, Link):
        return f'<a href="{escape(cell.href)}">{escape(cell.text)}</a>'
    if isinstance(cell, Badge):
        more = f'<span class="more">{escape(cell.more)}</span>' if cell.more else ""
        tag, href = ("a", f' href="{escape(cell.href)}"') if cell.href else ("span", "")
        return f'<{tag} class="badge {escape(cell.kind)}"{href}>{escape(cell.text)}</{tag}>{more}'
    if isinstance(cell, Strong):
        return f"<b>{escape(cell.text)}</b>"
    return escape(cell)


def markdown(title: str, blocks: list[tuple]) -> str:
    """The same blocks as Markdown; pictures and links stay relative."""
    return f"# {title}\n\n{_markdown_blocks(blocks)}\n"


def _markdown_blocks(blocks: list[tuple]) -> str:
    parts = []
    for kind, *rest in blocks:
        if kind == "h2":
            parts.append(f"## {rest[0]}")
        elif kind == "table":
            columns, rows = rest
            lines = [columns, ["---"] * len(columns), *(map(_markdown_cell, row) for row in rows)]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        elif kind == "figure":
            path, caption = rest
            parts.append(f"![{_plain(caption)}]({path})\n\n*{_plain(caption)}*")
        elif kind == "details":
            summary, inner = rest
            body = _markdown_blocks(inner)
            # GitHub reads Markdown again after an empty line, but takes the summary as HTML
            parts.append(
                f"<details><summary>{_html_inline(summary)}</summary>\n\n{body}\n\n</details>"
            )
        elif kind != "anchor":
            parts.append(_plain(rest[0]))
    return "\n\n".join(parts)


def _markdown_cell(cell) -> str:
    return _markdown_inline(cell).replace("|", "\\|").replace("\n", " ")


def _markdown_inline(cell) -> str:
    if isinstance(cell, list):
        parts = [_markdown_inline(part) + "<br>" * isinstance(part, Strong) for part in cell]
        return " ".join(parts).replace("<br> ", "<br>")
    if isinstance(cell, Link):
        # a place on the page itself is for the HTML, whose parts are folded
        text = _plain(cell.text)
        return text if cell.href.startswith("#") else f"[{text}]({cell.href})"
    if isinstance(cell, Badge):
        return f"**{_plain(cell.text)}**" + (f" ({_plain(cell.more)})" if cell.more else "")
    if isinstance(cell, Strong):
        return f"**{_plain(cell.text)}**"
    return _plain(cell)


def _plain(text: str) -> str:
    """Text that opens no tag; `*` and backquotes are the writer's."""
    return text.replace("<", "&lt;")
