"""What notebooks show as Markdown: tables of rows, and texts of models as they came."""

from __future__ import annotations

from html import escape


def table(rows: list[dict]) -> str:
    """Rows with the same keys as a Markdown table; a cell is anything that prints itself."""
    if not rows:
        return "*(no rows)*"
    keys = list(rows[0])
    cells = [[_cell(row.get(key, "")) for key in keys] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [keys, ["---"] * len(keys), *cells])


def _cell(value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def quote(text: str, limit: int = 500) -> str:
    """A prompt or an answer, verbatim, as a block that nothing in the text can end or escape from.

    Line breaks stay; what exceeds `limit` characters is cut, and the cut is said.
    """
    if len(text) > limit:
        text = f"{text[:limit]} [... {len(text) - limit:,} more characters]"
    # a blank line, a fence or an indent inside <pre> is text; the newline after <pre> is not shown
    return f'<pre style="white-space: pre-wrap">\n{escape(text.strip(chr(10)), quote=False)}</pre>'


def folded(summary: str, body: str) -> str:
    """Markdown that a reader opens with a click."""
    return f"<details><summary>{escape(summary)}</summary>\n\n{body}\n\n</details>"
