"""The examples that a compressed model finds hardest, with better answers to learn from."""

from __future__ import annotations

from pathlib import Path

from lib.files import write_jsonl


def losses(model, examples) -> dict[str, list]:
    """Loss of a loaded `runtime.Gguf` on the assistant's tokens: {"nats" (sum), "tokens"}, one a
    conversation."""
    import numpy as np

    from lib.compression.ladder import answer_places
    from lib.compression.runtime import log_softmax

    found: dict[str, list] = {"nats": [], "tokens": []}
    for example in examples:
        places, ids = answer_places(example), list(example["input_ids"])
        logits = model.logits(ids[: places[-1] + 1], places[0])[
            [place - places[0] for place in places]
        ]
        written = np.array([ids[place + 1] for place in places])
        found["nats"].append(float(-log_softmax(logits)[np.arange(len(places)), written].sum()))
        found["tokens"].append(len(places))
    return found


def hardest(examples, found: dict[str, list], count: int) -> list[tuple[str, float]]:
    """(row id, perplexity) of the `count` conversations with the highest mean loss, hardest first.

    Raises ValueError when there are fewer than asked for.
    """
    import math

    if count > len(found["nats"]):
        raise ValueError(
            f"{count} hard examples are asked for, {len(found['nats'])} were scored; score more"
            " rows"
        )
    means = [nats / tokens for nats, tokens in zip(found["nats"], found["tokens"], strict=True)]
    order = sorted(range(len(means)), key=lambda index: -means[index])[:count]
    ids = list(examples["id"])
    return [(ids[index], math.exp(min(means[index], 80.0))) for index in order]


def improved(rows: list[dict], out: Path, client=None, max_tokens: int = 512) -> dict:
    """Write the rows with better answers as a curated JSONL file for `conversations.dataset`.

    client: an `endpoint.Client` as teacher; None keeps the gold answers. A row that the teacher
    does not answer whole keeps its gold answer. Returns {"rows", "answered" (by the teacher),
    "source"}.
    """
    from lib.training.conversations import messages_of

    kept, answered = [dict(row) for row in rows], 0
    if client is not None:
        requests = [
            {"messages": messages_of(row)[:-1], "max_tokens": max_tokens, "temperature": 0.0}
            for row in rows
        ]
        for row, reply in zip(
            kept, client.chat(requests, label=f"teacher, {client.model}"), strict=True
        ):
            if "error" not in reply and reply["finish"] == "stop" and reply["text"].strip():
                row["response"] = reply["text"].strip()
                answered += 1
    write_jsonl(out, kept)
    return {
        "rows": len(kept),
        "answered": answered,
        "source": client.model if client is not None else "gold",
    }
