"""What keeps the house readable: sizes of modules and functions, a face for every room."""

from __future__ import annotations

import ast
import importlib
import json

import pytest

from lib.files import ROOT

MODULES = sorted((ROOT / "lib").rglob("*.py"))
ROOMS = sorted(path.parent for path in MODULES if path.name == "__init__.py")[1:]


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT)) for p in MODULES])
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert {f.name for f in functions if f.end_lineno - f.lineno >= 60} == set()


@pytest.mark.parametrize("room", ROOMS, ids=[room.name for room in ROOMS])
def test_a_room_has_a_face_that_names_its_modules_and_holds_no_code(room):
    face = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    words = ast.get_docstring(face).lower()
    assert len(face.body) == 1 and "import" in words and "public" in words
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    assert {name for name in modules if name not in words} == set()


def test_the_table_of_moved_names_leads_to_what_exists():
    """tests/cases_moved.json tells public cases where functions went since they were written."""
    table = json.loads((ROOT / "tests" / "cases_moved.json").read_text(encoding="utf-8"))
    lost = []
    for target in table.values():
        module, _, name = target.partition(":")
        imported = importlib.import_module(module)
        if name and not hasattr(imported, name):
            lost.append(target)
    assert table and lost == []
