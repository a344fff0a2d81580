"""From a model's text to a program, and from a task's tests to counted checks."""

from __future__ import annotations

import ast
import re
import warnings

FENCE = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def extract_code(text: str, names: list[str]) -> tuple[str | None, str]:
    """(code or None, extractor) of an answer.

    `fenced`: the last code block that defines one of `names`, else the last block. `bare`: without
    a block, the text from the first line that looks like Python. An unclosed block (a cut answer)
    counts to its end.
    """
    languages = ("", "py", "python", "python3")
    blocks = [body for language, body in FENCE.findall(text) if language.lower() in languages]
    if blocks:
        defining = [block for block in blocks if any(_defines(block, name) for name in names)]
        return (defining or blocks)[-1], "fenced"
    lines = text.split("\n")
    for position, line in enumerate(lines):
        if re.match(r"(?:def|class|import|from)\b|@|[A-Za-z_]\w* = |    \S", line):
            return "\n".join(lines[position:]), "bare"
    return None, "none"


def program(item: dict, code: str) -> str | None:
    """The whole solution: what the task gives, then the answer.

    None if no cut of it is Python that compiles. HumanEval: the prompt's imports and helper
    functions stay available, and an answer without the function's `def` line is taken as its body.
    Trailing lines that do not parse (prose, a cut line) are dropped.
    """
    meta = item["meta"]
    code = code.replace("\r\n", "\n").replace("\0", "").strip("\n")
    if meta["style"] == "humaneval":
        whole = _defines(code, meta["entry_point"])
        given = (
            _before(meta["prompt"], meta["entry_point"])
            if whole
            else meta["prompt"].rstrip() + "\n"
        )
        if not whole and not code.startswith((" ", "\t")):
            code = "\n".join("    " + line for line in code.split("\n"))
    else:
        given = "\n".join([*meta.get("imports", []), meta.get("setup", "")])
    lines = code.split("\n")
    for end in range(len(lines), max(0, len(lines) - 60), -1):
        candidate = given + "\n" + "\n".join(lines[:end]) + "\n"
        if _compiles(candidate):
            return candidate
    return None


def tests(item: dict) -> tuple[list[str], list[str]]:
    """(instrumented test sources, names of the functions to watch) of a code item."""
    meta = item["meta"]
    if meta["style"] == "humaneval":
        # A few tests draw random inputs; with a fixed seed the same program behaves the same in
        # every run.
        seed = ["import random; random.seed(0)"] if "random" in meta["test"] else []
        return [*seed, instrument(meta["test"]), f"check(__watch__({meta['entry_point']}))"], []
    trees = [ast.parse(test) for test in meta["tests"]]
    names = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return [instrument(test) for test in meta["tests"]], sorted(names)


def instrument(source: str) -> str:
    """The test source with every `assert` a counted check: one failure hides no other."""
    tree = _Asserts().visit(ast.parse(source.replace("\r\n", "\n")))
    return ast.unparse(ast.fix_missing_locations(tree))


class _Asserts(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        check = f"    __check__(not not ({ast.unparse(node.test)}))\n"
        failure = "except BaseException as __error__:\n    __check__(False, __error__)"
        return ast.parse("try:\n" + check + failure).body[0]


def _defines(code: str, name: str) -> bool:
    pattern = rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(|^{re.escape(name)}\s*="
    return re.search(pattern, code, re.MULTILINE) is not None


def _before(prompt: str, name: str) -> str:
    """The part of a prompt before the function's own `def`: imports and helpers."""
    definition = re.search(rf"^def\s+{re.escape(name)}\s*\(", prompt, re.MULTILINE)
    return prompt[: definition.start()] if definition else prompt


def _compiles(source: str) -> bool:
    try:
        with warnings.catch_warnings():  # invalid escapes in a model's strings are its own affair
            warnings.simplefilter("ignore")
            compile(source, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return False
    return True
