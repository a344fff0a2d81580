"""What the result of a step depends on, as hashes of what is meant: code, parameters, inputs.

Of `lib` only those top-level definitions count that the code cells of the notebook use, and what
these use in turn. Comments, docstrings and layout mean nothing.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterable
from pathlib import Path

from lib import meaning, params
from lib.files import from_root, sha256_file
from lib.workbook import definitions
from lib.workbook.definitions import TOP, WHOLE, Definition, Module

# These run notebooks and draw pages; no result depends on them.
RUNNERS = {
    "lib.report",
    "lib.workbook.definitions",
    "lib.workbook.freshness",
    "lib.workbook.notebook",
    "lib.workbook.page",
    "lib.workbook.pipeline",
    "lib.workbook.progress",
    "lib.workbook.state",
    "lib.workbook.steps",
    "lib.workbook.transcripts",
}


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
        inner = value if isinstance(value, list) else [value]
        texts |= {text for text in inner if isinstance(text, str)}
    named = {}
    for text in sorted(texts - {"", "."}):
        path = from_root(text, root)
        if os.path.exists(path):  # False, too, for a text that is too long to be a path
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            stats = [(file, file.stat()) for file in files]
            lines = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
            named[text] = meaning.digest("\n".join(lines))
    return named


def library(codes: list[str], root: Path) -> dict[str, str]:
    """{definition of lib: hash} for all that code cells use, directly or not, lazily or not."""
    notebook = definitions.read("\x1e".join(codes), "notebook", "")
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
    return definitions.read(path.read_text(encoding="utf-8"), dotted, package)
