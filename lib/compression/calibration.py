"""Calibration text: curated conversations of their own split, rendered as the model sees them, in
equal pieces."""

from __future__ import annotations

from pathlib import Path

from lib.files import content_hash, read_jsonl
from lib.training.conversations import messages_of


def sequences(
    path: Path, tokenizer, samples: int, length: int, seed: int
) -> tuple[list[list[int]], dict]:
    """`samples` sequences of exactly `length` token ids, and {conversations, sequences, tokens}.

    Conversations of a curated JSONL file, in an order that the hash of (seed, id) decides, rendered
    by the chat template, laid end to end and cut: equal lengths batch without padding, so no
    statistic counts a pad token. A piece may hold the end of one conversation and the beginning of
    the next. Raises ValueError when the file holds fewer tokens than asked for.
    """
    assert samples >= 1 and length >= 2, (samples, length)
    texts = {}
    for row in read_jsonl(path):
        texts[content_hash(str(seed), row["id"])] = messages_of(row)
    pieces, rest, used = [], [], 0
    for key in sorted(texts):
        text = tokenizer.apply_chat_template(texts[key], tokenize=False)
        rest += tokenizer(text, add_special_tokens=False)["input_ids"]
        used += 1
        while len(rest) >= length and len(pieces) < samples:
            pieces.append(rest[:length])
            rest = rest[length:]
        if len(pieces) == samples:
            break
    if len(pieces) < samples:
        raise ValueError(
            f"{Path(path).name}: {samples} calibration sequences of {length} tokens are asked for,"
            f" its {len(texts)} conversations fill {len(pieces)}; lower the number or the length,"
            " or curate more rows"
        )
    return pieces, {"conversations": used, "sequences": len(pieces), "tokens": samples * length}
