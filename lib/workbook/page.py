"""Blocks of a report as Markdown and as one self-contained HTML page: no script, no request to
anywhere.

A block is ("h2", text), ("p", text), ("note", text), ("table", columns, rows) or ("figure", path,
caption). A cell of a table is text, a Link or a Badge.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape as _escape
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
    """A verdict or a status; `kind` is its CSS class, `more` stands behind it."""

    text: str
    kind: str
    more: str = ""


def escape(text: str, quote: bool = True) -> str:
    """HTML text in which a number and its per cent sign stay on one line."""
    return _escape(text, quote).replace(" %", "\u00a0%")


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
    """The page as HTML; pictures, given relative to `folder`, are embedded. Figures in a row share
    it."""
    parts, figures = [f"<h1>{escape(title)}</h1>"], []

    def flush() -> None:
        if figures:
            parts.append(f'<div class="figures">{"".join(figures)}</div>')
            figures.clear()

    for kind, *rest in blocks:
        if kind == "figure":
            path, caption = rest
            figures.append(
                f'<figure><img alt="{escape(caption, quote=True)}" src="{data_uri(folder / path)}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
            continue
        flush()
        if kind == "table":
            parts.append(_html_table(*rest))
        elif kind == "h2":
            parts.append(f"<h2>{escape(rest[0])}</h2>")
        else:
            parts.append(f'<p class="{kind}">{escape(rest[0])}</p>')
    flush()
    return document(title, "\n".join(parts))


def _html_table(columns: list[str], rows: list[list]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        total = " class=total" if row[0] == "total" else ""
        body += f"<tr{total}>{''.join(map(_html_cell, row))}</tr>"
    return (
        f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _html_cell(cell) -> str:
    if isinstance(cell, Link):
        return (
            '<td class="tight"><a'
            f' href="{escape(cell.href, quote=True)}">{escape(cell.text)}</a></td>'
        )
    if isinstance(cell, Badge):
        more = f'<span class="more">{escape(cell.more)}</span>' if cell.more else ""
        return f'<td><span class="badge {escape(cell.kind)}">{escape(cell.text)}</span>{more}</td>'
    return f"<td{' class=tight' if len(cell) < 34 else ''}>{escape(cell)}</td>"


def markdown(title: str, blocks: list[tuple]) -> str:
    """The same blocks as Markdown; pictures and links stay relative."""
    parts = [f"# {title}"]
    for kind, *rest in blocks:
        if kind == "h2":
            parts.append(f"## {rest[0]}")
        elif kind == "table":
            columns, rows = rest
            lines = [
                columns,
                ["---"] * len(columns),
                *([_markdown_cell(cell) for cell in row] for row in rows),
            ]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        elif kind == "figure":
            parts.append(f"![{rest[1]}]({rest[0]})\n\n*{rest[1]}*")
        else:
            parts.append(rest[0].replace("<", "&lt;"))
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell) -> str:
    if isinstance(cell, Link):
        return f"[{cell.text}]({cell.href})"
    if isinstance(cell, Badge):
        cell = f"**{cell.text}**" + (f" ({cell.more})" if cell.more else "")
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
