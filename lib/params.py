"""Parameters: what a notebook declares, what a profile sets, one clear sentence when they disagree.

Files are flat: papermill replaces a nested dict whole. A step is a notebook, or
<notebook>.<variant>, which has the parameters of its notebook.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path

from lib.files import ROOT, from_root, shown
from lib.yamlfile import UNREADABLE, ParameterError, nearest, parse, read_yaml

# what common.yaml may set; a notebook declares those of them that it uses, first and in this order
COMMON = ("out", "model", "model_revision", "data", "seed", "dtype", "hourly_rate")
VARIANTS = "variants"  # in common.yaml, for the driver alone: which variants of notebooks run
DTYPES = ("auto", "bfloat16", "float32")  # of matrix products; auto is resolved by `run.start`


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: name, literal default, comment."""

    name: str
    default: object
    comment: str


def read_flat(path: Path, root: Path = ROOT) -> dict:
    """A flat mapping of scalars and lists of scalars. Raises ParameterError for anything else."""
    value = read_yaml(path, root)
    if value is None:
        return {}
    if not isinstance(value, dict):
        where = shown(path, root)
        raise ParameterError(f"{where}: must hold lines `key: value`, not {_kind(value)}")
    for key, entry in value.items():
        inner = entry if isinstance(entry, list) else [entry]
        if isinstance(entry, dict) or any(isinstance(item, (dict, list)) for item in inner):
            fault = f"{key} is nested; write flat keys, a nested default is replaced whole"
            raise ParameterError(f"{shown(path, root)}: {fault}")
    return value


def notebook_of(step: str) -> str:
    """30_modifier of the step 30_modifier.code; a step without a variant is its notebook."""
    return step.partition(".")[0]


def notebook_path(step: str, root: Path = ROOT) -> Path:
    """notebooks/<notebook>.ipynb. Raises ParameterError with the nearest existing name."""
    name = notebook_of(step)
    path = root / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        valid = [p.stem for p in (root / "notebooks").glob("*.ipynb")]
        raise ParameterError(f"notebooks/{name}.ipynb is missing; {nearest(name, valid)}")
    return path


def declared(path: Path, root: Path = ROOT) -> dict[str, Parameter]:
    """Parameters that a notebook declares, in order, read without running it.

    Raises ParameterError for anything papermill would misread: no tagged cell, two of them, an
    expression, several lines to one parameter, or a second `=` on the line, which hides the
    parameter from papermill.
    """
    where = shown(path, root)
    source = _parameters_cell(path, where)
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        place = f"{where}: parameters cell, line {error.lineno}"
        raise ParameterError(f"{place}: {error.msg}") from None
    lines, comments, parameters = source.splitlines(), _comments(source), {}
    for statement in statements:
        line = statement.lineno
        text = lines[line - 1]
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        one_line = len(targets) == 1 and statement.end_lineno == line
        if not one_line or not isinstance(targets[0], ast.Name):
            place = f"{where}: parameters cell, line {line}"
            raise ParameterError(f"{place}: write `name = literal  # why`: {text.strip()}")
        name = targets[0].id
        if text.count("=") > 1:
            fault = f"the line of parameter {name!r} holds a second '=' (in its comment or value)"
            raise ParameterError(f"{where}: {fault}, which hides it from papermill; reword it")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            fault = f"the default of {name!r} must be a literal: {text.strip()}"
            raise ParameterError(f"{where}: {fault}") from None
        if name in parameters:
            raise ParameterError(f"{where}: the parameter {name!r} is declared twice")
        parameters[name] = Parameter(name, default, comments.get(line, ""))
    return parameters


def _parameters_cell(path: Path, where: str) -> str:
    """The source of the one cell with the tag `parameters`."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    except FileNotFoundError:
        raise ParameterError(f"{where} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"{where}: not a notebook ({error})") from None
    if len(tagged) != 1:
        fault = f"one cell must carry the tag 'parameters', found {len(tagged)}"
        raise ParameterError(f"{where}: {fault}")
    return "".join(tagged[0]["source"])


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    words = [token.string.partition("# fmt:")[0].lstrip("# ").strip() for token in comments]
    return {token.start[0]: text for token, text in zip(comments, words, strict=True)}


KINDS = {int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}


def _kind(value) -> str:
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if value is None:
        return "an empty value"
    return f"the {KINDS.get(type(value), type(value).__name__)} {value!r}"


def check(where: str, name: str, value, default) -> object:
    """`value` if it fits the type of `default` (an integer fits a float), else ParameterError."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{where}: {name} is {value}; it must be a finite number")
    fault = f"{where}: {name} is {_kind(value)}; it must be"
    if isinstance(default, list):
        if not isinstance(value, list):
            raise ParameterError(f"{fault} a list, e.g. {default!r}")
        if not default:
            return value
        return [check(where, f"{name}[{n}]", part, default[0]) for n, part in enumerate(value)]
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            fault = f"{where}: {name} has {len(str(value))} digits"
            raise ParameterError(f"{fault}; it must be a finite number") from None
    if type(value) is type(default):
        return value
    wanted = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    raise ParameterError(
        f"{fault} {wanted[type(default)]}, as {default!r} is{_hint(value, default)}"
    )


def _hint(value, default) -> str:
    if isinstance(default, str):
        return "; put it in quotes"
    if isinstance(default, bool) or not isinstance(value, str):
        return ""
    try:
        return f"; YAML reads {value} as text, write {_with_point(float(value))}"
    except ValueError:
        return ""


def _with_point(number: float) -> str:
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}" if abs(int(exponent)) > 3 else repr(number)


def apply(where: str, values: dict, into: dict[str, Parameter], owner: str) -> dict:
    """Checked values. ParameterError for a key that `owner` does not declare, or a wrong type."""
    for key in values:
        if key not in into:
            raise ParameterError(f"{where}: {owner} has no parameter {key!r}; {nearest(key, into)}")
    return {key: check(where, key, value, into[key].default) for key, value in values.items()}


def profiles(root: Path = ROOT) -> list[str]:
    """Names of the profiles: the folders of params/."""
    return sorted(p.name for p in (root / "params").iterdir() if p.is_dir())


def variants(profile: str, root: Path = ROOT) -> list[str] | None:
    """The steps that `variants` in common.yaml names; None where the key is absent: all run."""
    path = _folder(profile, root) / "common.yaml"
    common = read_flat(path, root)
    if VARIANTS not in common:
        return None
    return check(shown(path, root), VARIANTS, common[VARIANTS], ["30_modifier.code"])


def effective(
    profile: str,
    steps: list[str],
    overrides: dict | None = None,
    root: Path = ROOT,
    chosen: list[str] | None = None,
    pinned: dict[str, dict] | None = None,
) -> dict[str, dict[str, object]]:
    """{step: its parameters}: defaults, common.yaml, <notebook>.yaml, <step>.yaml, then overrides.

    Checks the whole profile; raises ParameterError at the first fault. common.yaml sets COMMON
    alone, where the notebook declares the key. An override goes to each of the `chosen` steps (all
    by default) that declares it. `pinned`: {step, running or not: values that nothing contradicts}.
    """
    folder = _folder(profile, root)
    _check_files(folder, [*steps, *(pinned or {})], root)
    common = read_flat(folder / "common.yaml", root)
    for key in common.keys() - {*COMMON, VARIANTS}:
        where, near = shown(folder / "common.yaml", root), nearest(key, [*COMMON, VARIANTS])
        raise ParameterError(f"{where}: {key!r} is not common to notebooks; {near}")
    result, known = {}, {}
    for step in steps:
        parameters = declared(notebook_path(step, root), root)
        to_run = chosen is None or step in chosen
        known.update(parameters if to_run else {})
        layers = {"common.yaml": {key: value for key, value in common.items() if key in parameters}}
        for name in dict.fromkeys((notebook_of(step), step)):
            layers[f"{name}.yaml"] = read_flat(folder / f"{name}.yaml", root)
        layers = {shown(folder / file, root): layer for file, layer in layers.items()}
        layers["-p on the command line"] = {
            key: value for key, value in (overrides or {}).items() if key in parameters and to_run
        }
        result[step] = _layered(step, parameters, layers, (pinned or {}).get(step, {}))
        known_dtype(f"profile {profile}, step {step}", result[step])
        _folders_exist(result[step], layers, root)
    apply("-p on the command line", overrides or {}, known, "the run")
    return result


def _folder(profile: str, root: Path) -> Path:
    if profile not in profiles(root):
        raise ParameterError(f"params/{profile} is no profile; {nearest(profile, profiles(root))}")
    return root / "params" / profile


def _check_files(folder: Path, steps: list[str], root: Path) -> None:
    """ParameterError for a file of the profile that nothing would read."""
    for file in sorted(folder.glob("*.[yY]*[mM][lL]")):
        if file.suffix != ".yaml":
            raise ParameterError(f"{shown(file, root)} is read by nothing; it must end in .yaml")
        if file.stem in ("common", *steps, *map(notebook_of, steps)):
            continue
        where = shown(file, root)
        if "." in file.stem and notebook_of(file.stem) in map(notebook_of, steps):
            raise ParameterError(f"{where} belongs to no step; {nearest(file.stem, steps)}")
        try:
            notebook_path(file.stem, root)
        except ParameterError as error:
            raise ParameterError(f"{where} belongs to no notebook: {error}") from None


def _layered(
    step: str, parameters: dict[str, Parameter], layers: dict[str, dict], pinned: dict
) -> dict:
    """Defaults with each layer {where: values} over the one before, and what is pinned on top."""
    owner = f"notebook {notebook_of(step)}"
    values = {key: parameter.default for key, parameter in parameters.items()}
    for where, layer in layers.items():
        values |= apply(where, layer, parameters, owner)
        for key in layer.keys() & pinned.keys():
            if layer[key] != pinned[key]:
                raise ParameterError(f"{where}: {key} of the step {step} is {pinned[key]!r}")
    return values | apply(f"step {step}", pinned, parameters, owner)


def known_dtype(where: str, values: dict) -> None:
    """ParameterError when `dtype` is declared and is none of DTYPES."""
    if (value := values.get("dtype", "auto")) not in DTYPES:
        raise ParameterError(f"{where}: dtype is {value!r}; {nearest(value, DTYPES)}")


def _folders_exist(values: dict, layers: dict[str, dict], root: Path) -> None:
    """ParameterError when `data`, or a `model` written as a path, names no existing folder."""
    for key in ("data", "model"):
        value = values.get(key)
        is_path = isinstance(value, str) and (key == "data" or value.startswith((".", "/", "~")))
        if not is_path or value == "packaged" or (value and os.path.isdir(from_root(value, root))):
            continue
        origin = ["the notebook", *(where for where, layer in layers.items() if key in layer)][-1]
        beside = from_root(value, root).parent
        near_it = beside.glob("*") if value and os.path.isdir(beside) else []
        folders = [str(Path(value).parent / p.name) for p in near_it if p.is_dir()]
        others = [*folders, "packaged"] if key == "data" else folders or ["a folder that exists"]
        near = nearest(value, others)
        raise ParameterError(f"{origin}: {key} is {value!r}, and there is no such folder; {near}")


def parse_override(text: str) -> tuple[str, object]:
    """`key=value` of the command line; the value is read as YAML. Raises ParameterError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ParameterError(f"-p {text}: write -p key=value")
    try:
        return key.strip(), parse(value)
    except ParameterError as error:
        raise ParameterError(f"-p {text}: {error}") from None
    except UNREADABLE:
        return key.strip(), value


def parse_overrides(texts: list[str]) -> dict[str, object]:
    """{key: value} of all -p on the command line. ParameterError for a key that stands twice."""
    pairs = [parse_override(text) for text in texts]
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ParameterError(f"-p {key}: the key stands twice")
    return dict(pairs)
