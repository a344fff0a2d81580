"""From the layouts of the sources to one row: instruction, response, optional system and history.

A row has id, instruction, response, optional system and history, source, domain, difficulty and
licence; `history` lists the [user, assistant] pairs before the instruction, `id` is the content
hash of all text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lib.curation import filters
from lib.files import content_hash

USER = {"human", "user", "prompter"}
ASSISTANT = {"gpt", "assistant", "agent", "chatgpt", "bing", "bard", "model"}
TOOL = {"function_call", "observation", "tool", "function", "tool_call", "tool_response", "ipython"}
ALPACA = re.compile(
    r"(?s)^\s*Below is an instruction that describes a"
    r" task.*?###\s*Instruction:\s*(?P<instruction>.*?)"
    r"(?:\s*###\s*Input:\s*(?P<input>.*?))?\s*###\s*Response:\s*$"
)
VICUNA = re.compile(
    r"(?s)^A chat between a curious (?:user|human).*?(?:USER|Human):\s*(?P<instruction>.*?)"
    r"\s*(?:ASSISTANT|Assistant):\s*$"
)
ENDINGS = re.compile(r"(?:<\|endoftext\|>|</s>|<\|im_end\|>|<\|eot_id\|>)\s*$")
NO_INPUT = re.compile(r"(?i)^\W*(?:no ?input|none|n/?a|nan)\W*$")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


class Unusable(ValueError):
    """A raw row that cannot become a training row; the message is the reason recorded with it."""


def text(value) -> str:
    """A cell as clean text: stripped, no Windows line ends or end-of-text marks; None empty."""
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise Unusable(f"a {type(value).__name__} where text belongs")
    return ENDINGS.sub("", value.replace("\r\n", "\n")).strip()


def _first(row: dict, *keys: str) -> str:
    return next(filter(None, (text(row.get(key)) for key in keys)), "")


def _ask(instruction: str, context: str = "") -> str:
    return (
        instruction
        if not context or NO_INPUT.match(context)
        else f"{instruction}\n\n{context}".strip()
    )


def _flat(row: dict) -> list[dict]:
    """Alpaca and kin, Dolly, OpenOrca, MetaMathQA, question/answer ...: one field a side."""
    asked = _first(row, "instruction", "question", "query", "prompt", "problem", "text")
    asked = asked or ("" if "instruction" in row else _first(row, "input"))
    context = _first(row, "context", "input")
    answer = _first(
        row, "output", "response", "completion", "answer", "solution", "canonical_solution"
    )
    answer = answer or text(row.get("code"))
    wrapped = ALPACA.match(asked) or VICUNA.match(asked)
    if wrapped:
        parts = wrapped.groupdict()
        asked = _ask(parts["instruction"], parts.get("input") or "")
    if "####" in answer and "question" in row:  # GSM8K: calculator marks out, final line in words
        answer = re.sub(
            r"\s*####\s*(\S+)\s*$", r"\nThe answer is \1.", re.sub(r"<<[^>]*>>", "", answer)
        )
    history = row.get("history") or []
    if not isinstance(history, list) or any(
        not isinstance(p, list) or len(p) != 2 for p in history
    ):
        raise Unusable("history is not a list of [user, assistant] pairs")
    return [
        {
            "instruction": asked if context == asked else _ask(asked, context),
            "response": answer,
            "system": _first(row, "system_prompt", "system"),
            "history": [[text(user), text(assistant)] for user, assistant in history],
            "category": _category(row),
            "level": row.get("difficulty") or row.get("level"),
        }
    ]


def _category(row: dict) -> str:
    """What the source files a row under: Dolly's category, or "cot" of OpenOrca's "cot.86217"."""
    if isinstance(row.get("category"), str):
        return text(row["category"])
    return str(row.get("id")).partition(".")[0] if "system_prompt" in row else ""


def content(value) -> str:
    """Text of a message whose content is a string or typed parts; reasoning parts are left out."""
    if not isinstance(value, list):
        return text(value)
    parts = [part for part in value if isinstance(part, dict)]
    if any(part.get("type") in TOOL or part.get("type") == "tool_calls" for part in parts):
        raise Unusable("tool calls")
    kept = [
        text(part.get("value", part.get("text")))
        for part in parts
        if part.get("type", "text") == "text"
    ]
    return "\n".join(part for part in kept if part)


def _turns(turns: list[tuple[str, str]], system: str = "") -> list[dict]:
    """One row from (role, text) turns: the last exchange, with all before it as history.

    Turns of one speaker in a row are joined; an opening by the assistant and a closing question
    without an answer are left out. Conversations with tool turns are refused: pairs cannot hold
    what the tool said.
    """
    joined: list[list[str]] = []
    for role, said in turns:
        role = role.lower()
        if role in TOOL:
            raise Unusable("tool calls")
        if role == "system":
            system = system or said
            continue
        side = "user" if role in USER else "assistant" if role in ASSISTANT else ""
        if not side:
            raise Unusable(f"unknown speaker {role!r}")
        if joined and joined[-1][0] == side:
            joined[-1][1] = f"{joined[-1][1]}\n{said}".strip()
        else:
            joined.append([side, said])
    joined = joined[1:] if joined and joined[0][0] == "assistant" else joined
    joined = joined[:-1] if len(joined) % 2 and len(joined) > 1 else joined
    said = [words for _, words in joined] + [
        ""
    ]  # a lone question keeps an empty answer: "no response"
    pairs = [said[i : i + 2] for i in range(0, len(joined), 2)]
    if not pairs:
        raise Unusable("no user turn")
    return [
        {
            "instruction": pairs[-1][0],
            "response": pairs[-1][1],
            "system": system,
            "history": pairs[:-1],
        }
    ]


def _chat(row: dict) -> list[dict]:
    """ShareGPT `conversations` (from, value), `messages` (role, content), demos with `chosen`."""
    if row.get("label") is False:
        raise Unusable("labelled undesirable")
    messages = row.get("messages") or row.get("conversations")
    if not isinstance(messages, list) or any(not isinstance(message, dict) for message in messages):
        raise Unusable("the conversation is not a list of messages")
    if isinstance(row.get("chosen"), dict):
        messages = [*messages, row["chosen"]]
    turns = []
    for message in messages:
        if message.get("tool_calls") or message.get("function_call"):
            raise Unusable("tool calls")
        said = content(message.get("content", message.get("value")))
        turns.append((text(message.get("role") or message.get("from")), said))
    return _turns(turns, _first(row, "system_prompt", "system"))


def _preference(row: dict) -> list[dict]:
    """Anthropic-HH: the chosen transcript. Lists of messages are accepted too."""
    chosen = row["chosen"]
    if isinstance(chosen, list):
        return _chat({"messages": chosen})
    if row.get("prompt") and isinstance(chosen, str) and not TURN.search(chosen):
        return _flat({"prompt": row["prompt"], "response": chosen})
    pieces = TURN.split(text(chosen))
    if len(pieces) < 3:
        raise Unusable("no Human/Assistant turns in the transcript")
    roles = {"Human": "user", "Assistant": "assistant"}
    return _turns([(roles[pieces[i]], pieces[i + 1].strip()) for i in range(1, len(pieces), 2)])


def _tree(row: dict) -> list[dict]:
    """Open Assistant: the path of best-ranked replies from the root, deleted ones left out."""
    node, turns = row.get("prompt") if isinstance(row.get("prompt"), dict) else row, []
    while isinstance(node, dict):
        turns.append((text(node.get("role")), text(node.get("text"))))
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        node = min(replies, key=lambda reply: reply.get("rank") or 0, default=None)
    return _turns(turns)


def _seed(row: dict) -> list[dict]:
    """Self-instruct seed tasks: one row an instance."""
    asked = text(row.get("instruction"))
    return [
        {"instruction": _ask(asked, text(one.get("input"))), "response": text(one.get("output"))}
        for one in row["instances"]
        if isinstance(one, dict)
    ]


# (name, keys that must be there, reader, whether evaluation sets come in this layout); the first
# match wins.
SCHEMAS = (
    ("self-instruct", {"instruction", "instances"}, _seed, False),
    ("chat", {"messages"}, _chat, False),
    ("sharegpt", {"conversations"}, _chat, False),
    ("preference", {"chosen", "rejected"}, _preference, False),
    ("oasst tree", {"message_tree_id", "prompt"}, _tree, False),
    ("oasst message", {"text", "role", "replies"}, _tree, False),
    ("humaneval", {"prompt", "canonical_solution"}, _flat, True),
    ("mbpp", {"text", "code"}, _flat, True),
    ("metamath", {"query", "response"}, _flat, False),
    ("dolly", {"instruction", "context", "response"}, _flat, False),
    ("alpaca", {"instruction"}, _flat, False),
    ("openorca", {"question", "response"}, _flat, False),
    ("question/answer", {"question", "answer"}, _flat, True),
    ("math", {"problem", "solution"}, _flat, True),
    ("prompt/completion", {"prompt", "completion"}, _flat, False),
    ("prompt/response", {"prompt", "response"}, _flat, False),
    ("input/output", {"input", "output"}, _flat, False),
)  # fmt: skip


@lru_cache(maxsize=4096)
def detect(keys: frozenset[str]) -> tuple[str, object, bool] | None:
    """(name, reader, is an evaluation layout) of the layout with these lower-case keys, or None."""
    for name, needed, reader, held_out in SCHEMAS:
        if needed <= keys:
            return name, reader, held_out
    return None


def normalise(raw: dict, source: str, licence: str) -> list[dict]:
    """The rows of one raw row. Raises Unusable with the reason when there is none.

    A raw `licence` field (packaged code has one per function) overrides the licence of the source.
    """
    row = {str(key).strip().lower(): value for key, value in raw.items()}
    schema = detect(frozenset(row))
    if schema is None:
        known = ", ".join(name for name, *_ in SCHEMAS)
        raise Unusable(
            f"unknown layout with keys {', '.join(list(row)[:8])}; known layouts: {known}"
        )
    licence = text(row.get("licence")) or licence
    rows = [_row(part, source, licence) for part in schema[1](row)]
    if not rows:
        raise Unusable("no instance in the task")
    return rows


def _row(part: dict, source: str, licence: str) -> dict:
    """The one shape of a row, from what a reader of SCHEMAS made."""
    history, system = part.get("history") or [], part.get("system") or ""
    asked, answer = part["instruction"], part["response"]
    turns = (turn for pair in history for turn in pair)
    row = {"id": content_hash(system, *turns, asked, answer)}
    row |= {"instruction": asked, "response": answer}
    row |= {"system": system} if system else {}
    row |= {"history": history} if history else {}
    return row | {
        "source": source,
        "domain": filters.domain(source, asked, answer, part.get("category", "")),
        "difficulty": filters.difficulty(asked, answer, part.get("level")),
        "licence": licence,
    }
