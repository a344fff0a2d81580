"""Conversations as a model is trained on them: loss on the assistant's tokens alone."""

from __future__ import annotations

from pathlib import Path

from lib.files import content_hash, read_jsonl, sha256_file

IGNORED = -100  # label that torch's cross-entropy leaves out


def messages_of(row: dict) -> list[dict]:
    """Chat messages of a curated row: system, earlier turns, instruction, response."""
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for user, assistant in row.get("history") or []:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [
        *messages,
        {"role": "user", "content": row["instruction"]},
        {"role": "assistant", "content": row["response"]},
    ]


def encode(tokenizer, messages: list[dict], max_length: int) -> dict:
    """Token ids and labels of one conversation; labels are IGNORED outside the assistant's words.

    A template with `{% generation %}` marks the assistant's tokens itself. Without markers the
    spans are found by rendering the conversation up to each assistant turn; the end-of-turn token
    counts as the assistant's, what the template writes after it does not. Returns {input_ids,
    labels, truncated}, cut to max_length tokens.
    Raises: ValueError when the template rewrites earlier turns, so that no span can be trusted.
    """
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        out = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, kept = out["input_ids"], out["assistant_masks"]
    else:
        text, spans = assistant_spans(tokenizer, messages)
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = out["input_ids"]
        kept = [any(a <= start < b for a, b in spans) for start, _ in out["offset_mapping"]]
    labels = [token if keep else IGNORED for token, keep in zip(ids, kept, strict=True)]
    return {
        "input_ids": ids[:max_length],
        "labels": labels[:max_length],
        "truncated": len(ids) > max_length,
    }


def assistant_spans(tokenizer, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """Rendered text and the character spans [start, end) that the assistant says.

    The end-of-turn token counts as said.
    """
    render = tokenizer.apply_chat_template
    text, spans = render(messages, tokenize=False), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:index], tokenize=False, add_generation_prompt=True)
        after = render(messages[: index + 1], tokenize=False)
        if not (after.startswith(before) and text.startswith(after)):
            raise ValueError(
                "the chat template does not render a conversation as a prefix of its continuation,"
                " so the assistant's tokens cannot be located; add {% generation %} markers to the"
                " template"
            )
        end = after.rfind(tokenizer.eos_token or "\0", len(before))
        end = end + len(tokenizer.eos_token) if end >= 0 else len(after)
        spans.append((len(before), end))
    return text, spans


def dataset(path: Path, tokenizer, max_length: int, limit: int, seed: int, cache_dir: Path):
    """Encoded examples of a curated JSONL file, memory-mapped on disk.

    Args: limit: take this many rows, chosen by hash of (seed, id) and so independent of file order;
    0 takes all. Returns (datasets.Dataset with id, input_ids, labels, length; counts {rows,
    truncated, without_answer}). Raises ValueError when nothing is left to train on.
    """
    import datasets

    chosen = _chosen(path, limit, seed) if limit else None

    def rows(**key):  # the key makes the cache on disk follow the file's content and the tokenizer
        for row in read_jsonl(path):
            if chosen is None or row["id"] in chosen:
                yield _example(tokenizer, row, max_length)

    fingerprint = content_hash(
        sha256_file(path), tokenizer.chat_template, str(tokenizer.vocab_size), str(limit), str(seed)
    )
    data = datasets.Dataset.from_generator(
        rows,
        features=_features(),
        cache_dir=str(cache_dir),
        fingerprint=content_hash(fingerprint, str(max_length)),
    )
    counts = {"rows": len(data), "truncated": sum(data["truncated"]) if len(data) else 0}
    answered = data["answer_tokens"] if len(data) else []
    kept = [index for index, tokens in enumerate(answered) if tokens]
    counts["without_answer"] = len(data) - len(kept)
    if not kept:
        raise ValueError(
            f"{path}: no row has an assistant token within {max_length} tokens; raise max_length or"
            " look at 00_curate"
        )
    return data.select(kept), counts


def _chosen(path: Path, limit: int, seed: int) -> set[str]:
    ids = (row["id"] for row in read_jsonl(path))
    return set(sorted(ids, key=lambda name: content_hash(str(seed), name))[:limit])


def _example(tokenizer, row: dict, max_length: int) -> dict:
    """A curated row as a row of `dataset`."""
    example = encode(tokenizer, messages_of(row), max_length)
    if row.get("cut"):  # a text that ended at its token limit teaches no end
        _forget_end(example["labels"])
    answered = sum(label != IGNORED for label in example["labels"])
    length = len(example["input_ids"])
    return {"id": row["id"], **example, "answer_tokens": answered, "length": length}


def _features():
    import datasets

    ints, number = datasets.List(datasets.Value("int32")), datasets.Value("int32")
    kinds = {"id": datasets.Value("string"), "input_ids": ints, "labels": ints}
    kinds |= {"truncated": datasets.Value("bool"), "answer_tokens": number, "length": number}
    return datasets.Features(kinds)


def _forget_end(labels: list[int]) -> None:
    """Take the loss off the last token that carries it: the end of turn, if nothing was cut."""
    last = max((place for place, label in enumerate(labels) if label != IGNORED), default=None)
    if last is not None:
        labels[last] = IGNORED


def mask_table(tokenizer, example: dict) -> list[dict]:
    """Runs of tokens with or without loss, to be looked at: [{loss, tokens, text}]."""
    runs: list[dict] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        loss = label != IGNORED
        if not runs or runs[-1]["loss"] != loss:
            runs.append({"loss": loss, "ids": []})
        runs[-1]["ids"].append(token)
    return [
        {"loss": run["loss"], "tokens": len(run["ids"]), "text": tokenizer.decode(run["ids"])}
        for run in runs
    ]


def collate(examples: list[dict], pad_id: int) -> dict:
    """Right-padded {input_ids, attention_mask, labels}, each [batch, longest]."""
    import torch

    width = max(len(example["input_ids"]) for example in examples)

    def padded(values, fill):
        return torch.tensor([list(row) + [fill] * (width - len(row)) for row in values])

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([example["labels"] for example in examples], IGNORED),
    }
