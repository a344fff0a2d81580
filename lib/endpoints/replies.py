"""What an endpoint's reply holds: the answer, the tokens it counts, the setting it complains of."""

from __future__ import annotations

import json
from collections.abc import Callable

OPTIONAL = ("response_format", "max_tokens", "temperature", "seed", "reasoning_effort")


def read(body: str, parse: Callable | None = None) -> tuple[dict, object, str, tuple]:
    """(answer, parsed value, problem or "", (tokens in, tokens out)) of a completion's JSON text.

    A reply without usage counts (None, None): what it cost is then known only to be at most the
    worst case.
    """
    used: tuple[int | None, int | None] = (None, None)
    answer, value, problem = {}, None, ""
    try:
        data = json.loads(body)
        used = _usage(data)
        choice = data["choices"][0]
        answer = {
            "text": choice["message"]["content"],
            "finish": choice.get("finish_reason"),
            "model": data.get("model"),
            "tokens_in": used[0],
            "tokens_out": used[1],
        }
        if not isinstance(answer["text"], str):
            raise ValueError(f"no text in it (finish_reason {answer['finish']})")
        value = parse(answer["text"]) if parse else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    return answer, value, problem, used


def _usage(data: dict) -> tuple[int | None, int | None]:
    usage = data.get("usage") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return counts if all(isinstance(n, int) and n >= 0 for n in counts) else (None, None)


def unsupported(error: Exception, body: dict) -> str | None:
    """The optional setting of `body` that a 400 complains about, if that is what it complains of.

    error: of the `openai` package.
    """
    text = str(error).lower()
    for name in OPTIONAL:
        named = name in body and (getattr(error, "param", None) == name or name in text)
        if named and (name == "response_format" or "support" in text):
            return name
    return None
