"""Code training items without a data set: documented functions of Python and pinned packages.

Only functions that stand alone are taken: every name is a builtin, their own, or a standard-library
import that goes with them. HumanEval stays out through decontamination, like every other evaluation
set.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

# Folder under site-packages -> folders read; all of them under licences that allow copying with
# attribution.
PACKAGES = {
    "networkx": ("",),
    "setuptools": ("_vendor/more_itertools", "_distutils", ""),
    "sympy": (
        "utilities",
        "ntheory",
        "core",
        "functions/combinatorial",
        "polys",
        "matrices",
        "crypto",
    ),
    "numpy": ("lib", "_core"),
    "scipy": ("special", "stats", "linalg"),
    "statsmodels": ("tools", "stats"),
}
SKIP = re.compile(
    r"/(?:tests?|testing|idlelib|lib2to3|turtledemo|site-packages|benchmarks?|__pycache__)/"
)
IMPORT = re.compile(r"^(?:import [\w., ]+|from [\w.]+ import (?:[\w, ]+|\([\w,\s]+\)))$", re.M)
BUILTINS = frozenset(dir(builtins)) | {"__name__"}
MOST_LINES = 25  # of code, docstring not counted: answers stay short enough to train on quickly


def functions() -> Iterator[dict]:
    """{"name", "signature", "doc", "code", "module", "licence"} of every function that qualifies.

    signature: the def line(s); doc: docstring cut after its examples; code: imports and function
    without the docstring. Order follows file names, so the same installation gives the same list.
    """
    base = Path(sysconfig.get_paths()["purelib"])
    places = [("python", Path(sysconfig.get_paths()["stdlib"]), ("",), "PSF-2.0")]
    places += [
        (name, base / name, parts, _licence(name))
        for name, parts in PACKAGES.items()
        if (base / name).is_dir()
    ]
    seen: set[str] = set()
    for package, root, parts, licence in places:
        for part in parts:
            files = sorted((root / part).glob("*.py" if package == "python" or part else "**/*.py"))
            for path in files:
                if SKIP.search(path.relative_to(root.parent).as_posix()):
                    continue
                module = package + "." + ".".join(path.relative_to(root).with_suffix("").parts)
                for item in _of_file(path):
                    if item["code"] not in seen:
                        seen.add(item["code"])
                        yield item | {"module": module, "licence": f"{licence} ({package})"}


def _licence(name: str) -> str:
    about = metadata.metadata(name)
    stated = about.get("License-Expression") or ""
    lines = about.get_all("Classifier") or []
    kinds = [line.split(" :: ")[-1] for line in lines if line.startswith("License ::")]
    return stated or ", ".join(kinds) or "see the package"


def _of_file(path: Path) -> Iterator[dict]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    imports = None
    for piece in re.split(r"(?m)^(?=def )", text)[1:]:
        lines = re.split(r"(?m)^(?=\S)(?!\)|def )", piece, maxsplit=1)[0].rstrip()
        if '"""' not in lines or lines.count("\n") > 120 or lines.startswith("def _"):
            continue
        try:
            node = ast.parse(lines).body[0]
        except (SyntaxError, IndexError, ValueError):
            continue
        if imports is None:
            imports = _imports(text)
        if item := _item(node, lines, imports):
            yield item


def _imports(text: str) -> dict[str, str]:
    """Standard-library names a module imports at its top, with the line that does."""
    lines = {}
    for match in IMPORT.finditer(text):
        try:
            node = ast.parse(match.group()).body[0]
        except SyntaxError:
            continue
        module = node.module if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            root = (module or alias.name).split(".")[0]
            if (
                root in sys.stdlib_module_names
                and not getattr(node, "level", 0)
                and "." not in alias.name
            ):
                line = f"from {module} import {alias.name}" if module else f"import {alias.name}"
                renamed = f" as {alias.asname}" if alias.asname else ""
                lines[alias.asname or alias.name] = line + renamed
    return lines


def _item(node: ast.AST, source: str, imports: dict[str, str]) -> dict | None:
    if (
        not isinstance(node, ast.FunctionDef)
        or not (doc := ast.get_docstring(node))
        or len(node.body) < 2
    ):
        return None
    lines = source.split("\n")
    head, body = lines[: node.body[0].lineno - 1], lines[node.body[0].end_lineno :]
    while body and not body[0].strip():
        body = body[1:]
    needed = sorted(_free_names(node) - BUILTINS)
    if not 1 <= len(body) <= MOST_LINES or "deprecat" in doc.lower():
        return None
    if any(name not in imports for name in needed):
        return None
    if any(isinstance(part, ast.ImportFrom) and part.level for part in ast.walk(node)):
        return None
    used = sorted({imports[name] for name in needed})
    code = "\n".join([*used, *([""] * 2 if used else []), *head, *body])
    if len(code) > 1200:
        return None
    return {"name": node.name, "signature": "\n".join(head), "doc": _short(doc), "code": code}


def _short(doc: str) -> str:
    """First paragraph and at most three examples of a docstring: what a caller would ask for."""
    first = doc.strip().split("\n\n")[0].strip()
    calls = [
        one for one in examples(doc) if one.want and not one.source.startswith(("from ", "import "))
    ]
    shown = [
        ">>> " + one.source.rstrip().replace("\n", "\n... ") + "\n" + one.want for one in calls[:3]
    ]
    return f"{first}\n\n{''.join(shown)}".strip()[:900]


def examples(doc: str) -> list[doctest.Example]:
    """The `>>>` examples of a docstring, with `source` and `want`."""
    try:
        return doctest.DocTestParser().get_examples(doc)
    except ValueError:  # inconsistent indentation somewhere below
        return []


def _free_names(node: ast.AST) -> set[str]:
    bound, loaded = {node.name}, set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            (loaded if isinstance(part.ctx, ast.Load) else bound).add(part.id)
        elif isinstance(part, ast.arg):
            bound.add(part.arg)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in part.names)
        elif isinstance(part, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)):
            bound.add(part.name or "")
    return loaded - bound


@lru_cache(maxsize=1)
def all_functions() -> tuple[dict, ...]:
    """`functions`, read once a process."""
    return tuple(functions())
