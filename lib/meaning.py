"""What code means, apart from how it reads: syntax trees without comments, docstrings and layout.

Results are kept under a hash of the code that made them. A changed comment must not throw them
away, and a changed number must.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def without_docstrings(tree: ast.AST) -> ast.AST:
    """The same tree, changed in place: docstrings are gone."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and node.body and _is_text(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def tree(text: str) -> ast.Module:
    """The syntax tree of Python source without docstrings. Raises SyntaxError."""
    return without_docstrings(ast.parse(text))


def of_source(text: str) -> str:
    """The meaning of Python source as text to compare or hash. Raises SyntaxError."""
    return ast.dump(tree(text))


def of_statements(statements: Iterable[ast.stmt]) -> str:
    """16 hex digits over the meaning of statements of a `tree`."""
    return digest("\x1e".join(ast.dump(statement) for statement in statements))


def digest(text: str) -> str:
    """16 hex digits over a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def of_files(paths: Iterable[Path]) -> str:
    """16 hex digits over the meaning of Python files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(of_source(path.read_text(encoding="utf-8")).encode() + b"\x1e")
    return digest.hexdigest()[:16]
