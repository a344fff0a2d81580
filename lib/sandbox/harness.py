"""Runs untrusted code and its tests inside the sandbox process.

`lib.sandbox.child` loads it by path. Every name used after the untrusted code has run is bound
beforehand, so that code which deletes or replaces builtins spoils its own result and not the
report.
"""

import sys

_type, _len, _repr, _sorted, _hash, _Base = type, len, repr, sorted, hash, BaseException
_list, _tuple, _dict, _set, _frozenset, _str = list, tuple, dict, set, frozenset, str
_int, _float, _bool, _complex, _bytes = int, float, bool, complex, bytes


def canonical(value, depth=0):
    """Text of a value; equal values (1 and 1.0, sets in any order) have the same text."""
    kind = _type(value)
    if depth > 20:
        return "..."
    whole = kind is _float and value - value == 0 and value == _int(value)  # and finite
    if whole or kind in (_bool, _int):
        return _repr(_int(value))
    if kind is _float:
        return f"{value:.10g}"
    if kind in (_list, _tuple):
        inner = ",".join([canonical(element, depth + 1) for element in value])
        return f"[{inner}]" if kind is _list else f"({inner})"
    if kind in (_set, _frozenset):
        return "{" + ",".join(_sorted([canonical(element, depth + 1) for element in value])) + "}"
    if kind is _dict:
        pairs = [
            canonical(key, depth + 1) + ":" + canonical(item, depth + 1)
            for key, item in value.items()
        ]
        return "{" + ",".join(_sorted(pairs)) + "}"
    if kind in (_str, _bytes, _complex) or value is None:
        return _repr(value)
    return f"<{kind.__name__}>"  # its repr may hold an address, which differs from run to run


def short(text):
    """The text, or its length and hash where it is long (the process runs with hash seed 0)."""
    return text if _len(text) <= 80 else f"{text[:40]}~{_len(text)}~{_hash(text) & 0xFFFFFFFF:x}"


def name_of(error):
    return _type(error).__name__


def _print(stderr, error_types):
    """The traceback of the exception that is being handled, unless that fails, too."""
    try:
        import traceback

        traceback.print_exc(limit=5, file=stderr)
    except error_types:
        pass


def run(job, report):
    """Run job["solution"], then against it job["tests"], instrumented by `evaluation.code_check`.

    Returns {"ran", "checks", "failed", "error", "where"}; every check is reported as it happens,
    with what the function under test returned or raised: a later timeout does not lose the earlier
    ones.
    """
    counts, calls, depth, reported = [0, 0], [], [0], [0]
    stderr, limit, error_types = sys.stderr, job.get("max_reports", 500), (_Base,)

    def watch(function):
        def watched(*args, **kwargs):
            depth[0] += 1
            outcome = "?"
            try:
                value = function(*args, **kwargs)
                if depth[0] == 1:
                    outcome = short(canonical(value))
                return value
            except error_types as error:
                outcome = "!" + name_of(error)
                raise
            finally:
                depth[0] -= 1
                if not depth[0]:
                    calls.append(outcome)

        return watched

    def check(passed, error=None):
        counts[0] += 1
        counts[1] += not passed
        if reported[0] < limit:
            reported[0] += 1
            name = "" if error is None else name_of(error)
            report(event="check", passed=passed, calls=calls[:20], error=name)
        calls.clear()

    space = {"__name__": "__main__", "__builtins__": __builtins__}
    where = "solution"
    try:
        exec(compile(job["solution"], "solution", "exec", dont_inherit=True), space)
        if job.get("tests") is None:
            return {"ran": True, "checks": 0, "failed": 0}
        where = "tests"
        kind = _type(watch)
        for name in job["watched"]:
            if _type(space.get(name)) is kind:
                space[name] = watch(space[name])
        hidden = {**space, "__check__": check, "__watch__": watch}
        for source in job["tests"]:
            exec(compile(source, "tests", "exec", dont_inherit=True), hidden)
        return {"ran": True, "checks": counts[0], "failed": counts[1]}
    except error_types as error:
        _print(stderr, error_types)
        ended = {"ran": False, "error": name_of(error), "where": where}
        return {**ended, "checks": counts[0], "failed": counts[1]}
