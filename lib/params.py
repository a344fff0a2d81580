"""Parameters: what a notebook declares, what a profile sets, and one clear sentence when the two
disagree.

This is the only module that reads YAML. Files are flat, because papermill replaces a nested dict
whole.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.files import ROOT

# what common.yaml may set; a notebook declares those of them that it uses
COMMON = ("out", "model", "model_revision", "data", "seed", "dtype", "hourly_rate")
DTYPES = ("auto", "bfloat16", "float32")  # of matrix products; auto is resolved by `run.start`


class ParameterError(ValueError):
    """A parameter, profile or gate file that cannot be used. The message is one sentence for the
    user."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: name, literal default, comment."""

    name: str
    default: object
    comment: str


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error and a date stays a string, as in
    papermill."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ParameterError(f"the key {key!r} stands twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word most like `word`, or all of them when none is near."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(word), valid, n=1, cutoff=0.5)
    return (
        f"the nearest valid one is {close[0]!r}"
        if close
        else f"valid are: {', '.join(valid) or 'none'}"
    )


def shown(path: str | Path, root: Path = ROOT) -> str:
    """A path relative to the repository where possible, so that messages and records name no
    machine."""
    path = Path(path)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def read_yaml(path: Path, root: Path = ROOT):
    """The value of a YAML file. Raises ParameterError naming the file, and the line of a syntax
    error."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ParameterError(
            f"{shown(path, root)} is missing; {nearest(path.name, siblings)}"
        ) from None
    except ParameterError as error:
        raise ParameterError(f"{shown(path, root)}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise ParameterError(
            f"{shown(path, root)}{where}: not readable as YAML ({reason})"
        ) from None


def read_flat(path: Path, root: Path = ROOT) -> dict:
    """A flat mapping of scalars and lists of scalars. Raises ParameterError for anything else."""
    value = read_yaml(path, root)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ParameterError(
            f"{shown(path, root)}: must hold lines `key: value`, not {_kind(value)}"
        )
    for key, entry in value.items():
        inner = entry if isinstance(entry, list) else [entry]
        if isinstance(entry, dict) or any(isinstance(item, (dict, list)) for item in inner):
            raise ParameterError(
                f"{shown(path, root)}: {key} is nested; write flat keys, a nested default is"
                " replaced whole"
            )
    return value


def notebook_path(name: str, root: Path = ROOT) -> Path:
    """notebooks/<name>.ipynb. Raises ParameterError with the nearest existing name."""
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
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise ParameterError(f"{where} is missing") from None
    except (ValueError, KeyError) as error:
        raise ParameterError(f"{where}: not a notebook ({error})") from None
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(
            f"{where}: one cell must carry the tag 'parameters', found {len(tagged)}"
        )
    source = "".join(tagged[0]["source"])
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(
            f"{where}: parameters cell, line {error.lineno}: {error.msg}"
        ) from None
    lines, comments, found = source.splitlines(), _comments(source), {}
    for statement in statements:
        line = statement.lineno
        text = lines[line - 1].strip()
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if (
            not isinstance(target, ast.Name)
            or len(statement.targets) != 1
            or statement.end_lineno != line
        ):
            raise ParameterError(
                f"{where}: parameters cell, line {line}: write `name = literal  # why`: {text}"
            )
        if lines[line - 1].count("=") > 1:
            raise ParameterError(
                f"{where}: the line of parameter {target.id!r} holds a second '=' (in its comment"
                " or value), which hides the parameter from papermill; reword it"
            )
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ParameterError(
                f"{where}: the default of {target.id!r} must be a literal: {text}"
            ) from None
        if target.id in found:
            raise ParameterError(f"{where}: the parameter {target.id!r} is declared twice")
        found[target.id] = Parameter(target.id, default, comments.get(line, ""))
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    words = [token.string.partition("# fmt:")[0].lstrip("# ").strip() for token in comments]
    return {token.start[0]: text for token, text in zip(comments, words, strict=True)}


def _kind(value) -> str:
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if value is None:
        return "an empty value"
    names = {
        int: "the integer",
        float: "the number",
        str: "the text",
        list: "the list",
        dict: "the mapping",
    }
    return f"{names.get(type(value), type(value).__name__)} {value!r}"


def check(where: str, name: str, value, default) -> object:
    """`value` if it fits the type of `default` (an integer fits a float). Raises ParameterError
    otherwise."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{where}: {name} is {value}; it must be a finite number")
    if isinstance(default, list):
        if not isinstance(value, list):
            raise ParameterError(
                f"{where}: {name} is {_kind(value)}; it must be a list, e.g. {default!r}"
            )
        inner = default[0] if default else None
        return [
            v if inner is None else check(where, f"{name}[{i}]", v, inner)
            for i, v in enumerate(value)
        ]
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default):
        return value
    hint = ""
    if (
        isinstance(default, (int, float))
        and not isinstance(default, bool)
        and isinstance(value, str)
    ):
        try:
            number = float(value)
            hint = f"; YAML reads {value} as text, write {_with_point(number)}"
        except ValueError:
            pass
    elif isinstance(default, str):
        hint = "; put it in quotes"
    wanted = {bool: "true or false", int: "an integer", float: "a number", str: "text"}[
        type(default)
    ]
    raise ParameterError(
        f"{where}: {name} is {_kind(value)}; it must be {wanted}, as {default!r} is{hint}"
    )


def _with_point(number: float) -> str:
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}" if abs(int(exponent)) > 3 else repr(number)


def apply(where: str, values: dict, into: dict[str, Parameter], owner: str) -> dict:
    """Checked values. Raises ParameterError for a key that `owner` does not declare, or of the
    wrong type."""
    for key in values:
        if key not in into:
            raise ParameterError(f"{where}: {owner} has no parameter {key!r}; {nearest(key, into)}")
    return {key: check(where, key, value, into[key].default) for key, value in values.items()}


def profiles(root: Path = ROOT) -> list[str]:
    """Names of the profiles: the folders of params/."""
    return sorted(p.name for p in (root / "params").iterdir() if p.is_dir())


def effective(
    profile: str,
    names: list[str],
    overrides: dict | None = None,
    root: Path = ROOT,
    chosen: list[str] | None = None,
) -> dict[str, dict[str, object]]:
    """Every parameter of every named notebook: its defaults, common.yaml, <notebook>.yaml, then
    overrides.

    Reads and checks the whole profile before anything runs; raises ParameterError at the first
    fault. An override goes to each of the `chosen` notebooks (all by default) that declares it; one
    at least must.
    """
    folder = root / "params" / profile
    if not folder.is_dir():
        raise ParameterError(f"params/{profile} is no profile; {nearest(profile, profiles(root))}")
    for file in sorted(folder.glob("*.yaml")):
        if file.stem not in (*names, "common"):
            try:
                notebook_path(file.stem, root)
            except ParameterError as error:
                raise ParameterError(
                    f"{shown(file, root)} belongs to no notebook: {error}"
                ) from None
    common = read_flat(folder / "common.yaml", root)
    result, known = {}, {}
    for name in names:
        own = declared(notebook_path(name, root), root)
        to_run = chosen is None or name in chosen
        known.update(own if to_run else {})
        values = {key: parameter.default for key, parameter in own.items()}
        values |= apply(shown(folder / "common.yaml", root), common, own, f"notebook {name}")
        path = folder / f"{name}.yaml"
        values |= apply(shown(path, root), read_flat(path, root), own, f"notebook {name}")
        mine = {key: value for key, value in (overrides or {}).items() if key in own and to_run}
        result[name] = values | apply("-p on the command line", mine, own, f"notebook {name}")
        known_dtype(f"profile {profile}, notebook {name}", result[name])
        _folders_exist(
            result[name], {path: read_flat(path, root), folder / "common.yaml": common}, mine, root
        )
    apply("-p on the command line", overrides or {}, known, "the run")
    return result


def known_dtype(where: str, values: dict) -> None:
    """ParameterError when `dtype` is declared and is none of DTYPES."""
    if (value := values.get("dtype", "auto")) not in DTYPES:
        raise ParameterError(f"{where}: dtype is {value!r}; {nearest(value, DTYPES)}")


def _folders_exist(values: dict, files: dict[Path, dict], overrides: dict, root: Path) -> None:
    """ParameterError when `data`, or a `model` written as a path, names a folder that is not
    there."""
    for key in ("data", "model"):
        value = values.get(key)
        is_path = isinstance(value, str) and (key == "data" or value.startswith((".", "/", "~")))
        if not is_path or value == "packaged" or (root / Path(value).expanduser()).is_dir():
            continue
        origin = next(
            (shown(path, root) for path, content in files.items() if key in content), "the notebook"
        )
        beside = (root / Path(value).expanduser()).parent
        found = [str(Path(value).parent / each.name) for each in beside.glob("*") if each.is_dir()]
        near = nearest(
            value, [*found, "packaged"] if key == "data" else found or ["a folder that exists"]
        )
        origin = "-p on the command line" if key in overrides else origin
        raise ParameterError(f"{origin}: {key} is {value!r}, and there is no such folder; {near}")


def parse_override(text: str) -> tuple[str, object]:
    """`key=value` of the command line; the value is read as YAML. Raises ParameterError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ParameterError(f"-p {text}: write -p key=value")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        return key.strip(), value
