"""YAML as this project reads it: safe, no key twice, and one sentence for whatever is wrong.

This is the only module that reads YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from lib.files import ROOT, shown


class ParameterError(ValueError):
    """A parameter, profile or gate file that cannot be used; one sentence for the user."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word most like `word`, or all of them when none is near."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(word), valid, n=1, cutoff=0.5)
    if close:
        return f"the nearest valid one is {close[0]!r}"
    return f"valid are: {', '.join(valid) or 'none'}"


class _Loader(yaml.SafeLoader):
    """Safe YAML: a key that stands twice is an error, a date stays a string, as in papermill."""

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


# what PyYAML raises: its own errors; `!!int x`, `!!timestamp x`; brackets nested a thousand deep
UNREADABLE = (yaml.YAMLError, ValueError, AttributeError, RecursionError)


def parse(text: str):
    """The value of YAML text. Raises ParameterError for a key that stands twice, or UNREADABLE."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path, root: Path = ROOT):
    """The value of a YAML file. Raises ParameterError naming the file, and a faulty line."""
    name = shown(path, root)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml") if p.exists()]
        raise ParameterError(f"{name} is missing; {nearest(path.name, siblings)}") from None
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from None
    except OSError as error:
        raise ParameterError(f"{name} cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ParameterError(f"{name}{where}: not readable as YAML ({reason})") from None
