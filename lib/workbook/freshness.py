"""What the result of a step depends on, as hashes of what is meant: code, parameters, inputs.

Of `lib` only those top-level definitions count that the code cells of the notebook use, and what
these use in turn. Comments, docstrings and layout mean nothing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lib import meaning, params
from lib.files import from_root, sha256_file

# These run notebooks and draw pages; no result depends on them.
RUNNERS = {
    "lib.report",
    "lib.workbook.freshness",
    "lib.workbook.notebook",
    "lib.workbook.page",
    "lib.workbook.pipeline",
    "lib.workbook.progress",
    "lib.workbook.state",
    "lib.workbook.steps",
    "lib.workbook.transcripts",
}
WHOLE = "*"  # asks for all of a module
TOP = "top level"  # of a module: statements that are neither definition nor import
GUARD = "run by name"  # of a module: what stands under if __name__ == "__main__"
MODULE = re.compile(r"\blib(?:\.\w+)+")  # the name of a module inside a text
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


def parts(
    step: str, values: dict, upstream: Iterable[str], out: Path, root: Path
) -> dict[str, dict]:
    """{kind: {name: hash}} of all that the result of a step depends on.

    Kinds: the notebook's code, parameter values, definitions of lib, metrics of the steps that it
    reads (`upstream`), and local files or folders that parameters name (by size and time).
    """
    cells = json.loads(params.notebook_path(step, root).read_text(encoding="utf-8"))["cells"]
    codes = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])
    ]
    metrics = {other: out / "metrics" / f"{other}.json" for other in upstream}
    return {
        "notebook": {step: meaning.digest("\x1e".join(filter(None, map(_cell, codes))))},
        "parameter": {key: repr(value) for key, value in values.items() if key != "out"},
        "lib": library(codes, root),
        "upstream": {name: file_digest(path) for name, path in metrics.items()},
        "file": _named_files(values, root),
    }


def _cell(code: str) -> str:
    """The meaning of a code cell; empty if it holds nothing but comments."""
    try:
        tree = meaning.tree(code)
    except SyntaxError:  # a magic
        return code
    return ast.dump(tree) if tree.body else ""


def file_digest(path: Path) -> str:
    """16 hex digits of a file, or "absent"."""
    return sha256_file(path)[:16] if path.exists() else "absent"


def _named_files(values: dict, root: Path) -> dict[str, str]:
    """Files and folders named by parameters, by the size and time of all that is in them."""
    texts = set()
    for value in (value for key, value in values.items() if key != "out"):
        texts |= {text for text in (value if isinstance(value, list) else [value]) if text}
    named = {}
    for text in sorted(text for text in texts if isinstance(text, str) and text != "."):
        path = from_root(text, root)
        if path.exists():
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            stats = [(file, file.stat()) for file in files]
            lines = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
            named[text] = meaning.digest("\n".join(lines))
    return named


def library(codes: list[str], root: Path) -> dict[str, str]:
    """{definition of lib: hash} for all that code cells use, directly or not, lazily or not."""
    notebook = _module("\x1e".join(codes), "notebook", "")
    used: dict[str, str] = {}
    waiting = [name for definition in notebook.definitions.values() for name in definition.uses]
    seen: set[str] = set()
    places: dict[str, Path | None] = {}
    modules: dict[Path, Module] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        dotted, path = _locate(name, root, places)
        if path is None or dotted in RUNNERS:
            continue
        if path not in modules:
            modules[path] = _read(dotted, path)
        module = modules[path]
        attribute = name.removeprefix(dotted).lstrip(".").partition(".")[0]
        if attribute in module.imports and attribute not in module.definitions:
            rest = name.removeprefix(f"{dotted}.{attribute}")
            waiting.append(module.imports[attribute] + rest)
        package = path.name == "__init__.py"
        whole = _is_whole(attribute, module, package)
        if whole and package:
            waiting += [f"{dotted}.{inside}.{WHOLE}" for inside in _modules_in(path.parent)]
        wanted = module.definitions if whole else {attribute, TOP}
        for part in module.definitions.keys() & wanted:
            definition = module.definitions[part]
            used[f"{dotted}.{part}".removeprefix("lib.")] = definition.digest
            waiting += definition.uses
            waiting += _files(definition, path.parent, root, used)
        parent = dotted.rpartition(".")[0]
        waiting += [f"{parent}.{TOP}"] if parent else []
    return dict(sorted(used.items()))


def _is_whole(attribute: str, module: Module, package: bool) -> bool:
    """Whether a name means a module as a value, or something in it that cannot be told apart."""
    if package:
        return attribute in ("", WHOLE) or attribute.startswith("__")
    return attribute not in module.imports.keys() | module.definitions.keys() | {TOP}


def _modules_in(folder: Path) -> list[str]:
    inside = [path for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()]
    return [path.stem for path in inside if path.stem.isidentifier()]


def _files(definition: Definition, folder: Path, root: Path, used: dict[str, str]) -> list[str]:
    """Modules named as files, to be followed; other files beside the module are hashed at once."""
    modules = []
    for text in definition.files:
        path = root / text if text.startswith("lib/") else folder / text
        if not path.is_file():
            continue
        dotted = ".".join(path.relative_to(root).with_suffix("").parts)
        if path.suffix == ".py":
            modules.append(f"{dotted}.{WHOLE}")
        else:
            used[f"{dotted}{path.suffix}".removeprefix("lib.")] = file_digest(path)
    return modules


def _locate(name: str, root: Path, places: dict[str, Path | None]) -> tuple[str, Path | None]:
    """The longest beginning of a dotted name that is a module of lib, and its file (or None)."""
    dotted, path = "", None
    words = name.split(".")
    for count in range(1, len(words) + 1) if words[0] == "lib" else ():
        candidate = ".".join(words[:count])
        if candidate not in places:
            base = root.joinpath(*words[:count])
            files = [base.with_suffix(".py"), base / "__init__.py"]
            places[candidate] = next((file for file in files if file.is_file()), None)
        if places[candidate] is None:
            break
        dotted, path = candidate, places[candidate]
    return dotted, path


def _read(dotted: str, path: Path) -> Module:
    package = dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]
    return _module(path.read_text(encoding="utf-8"), dotted, package)


@cache
def _module(text: str, dotted: str, package: str) -> Module:
    """The definitions in Python source; the cells of a notebook are joined by 0x1E."""
    module, groups = Module(), {}
    for source in text.split("\x1e"):
        try:
            body = meaning.tree(source).body
        except SyntaxError:  # a cell magic: its text counts, and every module that it names
            body = [ast.Expr(ast.Constant(source))]
        for statement in body:
            module.imports |= _imports(statement, package)
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


def _imports(statement: ast.AST, package: str) -> dict[str, str]:
    """{local name: dotted name} of the imports in a statement, not in functions inside it."""
    names = {}
    for node in _outside_functions(statement):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            names |= {a.asname or a.name: f"{base}.{a.name}" for a in node.names if a.name != "*"}
    return names


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute dotted name of the module that is imported from."""
    above = package.rsplit(".", node.level - 1)[0] if node.level else ""
    return ".".join(part for part in (above, node.module) if part)


def _outside_functions(node: ast.AST) -> Iterable[ast.AST]:
    """The node and all below it, without the bodies of functions below it."""
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)


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
    for statement in body:
        for node in _outside_functions(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names[node.id] = None
            elif isinstance(node, NAMED) and node.name:
                names[node.name] = None
            elif isinstance(node, (ast.Global, ast.Nonlocal)):
                outer |= set(node.names)
        names |= _imports(statement, package)
    return {name: target for name, target in names.items() if name not in outer}
