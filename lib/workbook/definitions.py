"""The top-level definitions of Python source: what each of them means, and which names it uses.

Names are followed as Python scopes them: local names of functions and comprehensions are not meant,
imports are, wherever they stand. A text that names a module of lib, or a file, counts as its use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from lib import meaning

WHOLE = "*"  # asks for all of a module
TOP = "top level"  # of a module: statements that are neither definition nor import
GUARD = "run by name"  # of a module: what stands under if __name__ == "__main__"
MODULE = re.compile(r"\blib(?:\.\w+)+")  # the name of a module inside a text
NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")  # a name with its attributes
FILE = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.\w+")  # the name of a file


@dataclass
class Definition:
    """A top-level function, class or constant: its meaning and the dotted names that it uses."""

    digest: str
    uses: set[str]
    files: set[str]  # texts in it that may name a file beside the module


@dataclass
class Module:
    """The top-level definitions of one file, and the dotted names that its imports stand for."""

    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)


@cache
def read(text: str, dotted: str, package: str) -> Module:
    """The definitions in Python source; the cells of a notebook are joined by 0x1E."""
    module, groups = Module(), {}
    for source in text.split("\x1e"):
        try:
            body = meaning.tree(source).body
        except SyntaxError:  # a magic of IPython, or a fault
            body = _with_magics(source)
        for statement in body:
            for node in _of_scope(statement):
                module.imports |= _imports(node, package)
            for name in _defined(statement):
                groups.setdefault(name, []).append(statement)
    known = module.imports | {name: f"{dotted}.{name}" for name in groups}
    for name, statements in groups.items():
        visitor = _Names(known, package)
        for statement in statements:
            visitor.visit(statement)
        digest = meaning.of_statements(statements)
        module.definitions[name] = Definition(digest, visitor.uses, visitor.files)
    return module


MAGIC = re.compile(r"(?P<target>\s*(?:[\w, ]+=)?\s*)(?P<magic>[%!?].*|[\w.]+\?+\s*)")


def _with_magics(source: str) -> list[ast.stmt]:
    """The statements of a cell with lines that only IPython reads; of those, what `_of_text` says.

    What is no Python even so counts as one text.
    """
    lines, extra = [], []
    for line in source.splitlines():
        magic = MAGIC.fullmatch(line)
        lines.append(f"{magic['target']}{magic['magic']!r}" if magic else line)
        extra += _of_text(magic["magic"]) if magic else []
    try:
        return [*meaning.tree("\n".join(lines)).body, *extra]
    except SyntaxError:
        return _of_text(source)


def _of_text(text: str) -> list[ast.stmt]:
    """A text, the statements that stand on its lines, and every name in it, as if it were used."""
    statements: list[ast.stmt] = [ast.Expr(ast.Constant(text))]
    candidates = [re.sub(r"^\s*(?:%%?\w+\s)?\s*", "", line) for line in text.splitlines()]
    for candidate in (*candidates, *NAME.findall(text)):
        with suppress(SyntaxError):
            statements += meaning.tree(candidate).body
    return statements


PLAIN = (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)  # x, y = ...


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement defines; [] of an import, [TOP] of any other."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Pass):
        return []
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        star = isinstance(statement, ast.ImportFrom) and statement.names[0].name == WHOLE
        return [TOP] if star else []
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        parts = [part for target in targets for part in ast.walk(target)]
        if all(isinstance(part, PLAIN) for part in parts):
            return [part.id for part in parts if isinstance(part, ast.Name)]
    if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
        return [GUARD]
    return [TOP]


def _imports(node: ast.AST, package: str) -> dict[str, str]:
    """{local name: dotted name} of an import; {} of any other node."""
    if isinstance(node, ast.Import):
        firsts = [alias.name.partition(".")[0] for alias in node.names]
        pairs = list(zip(node.names, firsts, strict=True))
        return {a.asname or first: a.name if a.asname else first for a, first in pairs}
    if isinstance(node, ast.ImportFrom):
        base = _base(node, package)
        return {a.asname or a.name: f"{base}.{a.name}" for a in node.names if a.name != WHOLE}
    return {}


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute dotted name of the module that is imported from."""
    above = package.rsplit(".", node.level - 1)[0] if node.level else ""
    return ".".join(part for part in (above, node.module) if part)


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, *COMPREHENSIONS)
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)


def _of_scope(node: ast.AST) -> Iterable[ast.AST]:
    """The node and all below it in its scope, which ends at functions, classes, comprehensions."""
    yield node
    if not isinstance(node, SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _of_scope(child)


class _Names(ast.NodeVisitor):
    """Collects the dotted names that a statement uses; names local to a function are not meant."""

    def __init__(self, known: dict[str, str], package: str):
        self.scopes: list[dict[str, str | None]] = [known]
        self.package = package
        self.uses: set[str] = set()
        self.files: set[str] = set()

    def _use(self, name: str, rest: str = "") -> None:
        for scope in reversed(self.scopes):
            if name in scope:
                self.uses |= {scope[name] + rest} if scope[name] else set()
                return

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Store):
            self._use(node.id)

    def visit_Global(self, node: ast.Global) -> None:
        for name in node.names:
            self._use(name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        words, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            words, inner = [inner.attr, *words], inner.value
        if isinstance(inner, ast.Name):
            self._use(inner.id, "".join(f".{word}" for word in words))
        else:
            self.visit(inner)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.uses |= {f"{name}.{WHOLE}" for name in MODULE.findall(node.value)}
            self.files |= {node.value} if FILE.fullmatch(node.value) else set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.names[0].name == WHOLE:
            self.uses.add(f"{_base(node, self.package)}.{WHOLE}")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.target, node.value])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_all(node.decorator_list)
        self._visit_function(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node.args, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scopes.append({})
        for inner in (inner for statement in node.body for inner in _of_scope(statement)):
            self.scopes[-1] |= _imports(inner, self.package)
        self.generic_visit(node)
        self.scopes.pop()

    def _visit_comprehension(self, node: ast.ListComp) -> None:
        targets = [part for loop in node.generators for part in ast.walk(loop.target)]
        self.scopes.append({part.id: None for part in targets if isinstance(part, ast.Name)})
        self.generic_visit(node)
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _visit_function(self, arguments: ast.arguments, body: list[ast.AST]) -> None:
        self._visit_all([*arguments.defaults, *arguments.kw_defaults])
        self.scopes.append(_local(arguments, body, self.package))
        self._visit_all(body)
        self.scopes.pop()

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)


def _local(arguments: ast.arguments, body: list[ast.AST], package: str) -> dict[str, str | None]:
    """The names local to a function: None, or what they stand for where they are imported."""
    names: dict[str, str | None] = {
        node.arg: None for node in ast.walk(arguments) if isinstance(node, ast.arg)
    }
    outer: set[str] = set()
    for node in (node for statement in body for node in _of_scope(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        elif isinstance(node, NAMED) and node.name:
            names[node.name] = None
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            outer |= set(node.names)
        names |= _imports(node, package)
    return {name: target for name, target in names.items() if name not in outer}
