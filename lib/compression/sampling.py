"""Decoding several sequences at once through a loaded `runtime.Gguf`.

A group is what fits the key/value cache; it is decoded to its end before the next one begins.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Sample:
    """One answer while it is written: `ids` are the prompt's tokens, `tokens` the written ones."""

    prompt: int
    sample: int
    ids: list[int]
    random: object
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"
    seconds: float = 0.0
    place: int = 0  # number of its sequence in llama.cpp's cache


def waiting_samples(prompts: list[list[int]], n: int, seed: int, skip: set) -> deque[Sample]:
    """n samples of every prompt in order, without the (prompt, sample) pairs in `skip`."""
    return deque(
        Sample(number, sample, ids, _random(seed, sample, ids))
        for number, ids in enumerate(prompts)
        for sample in range(n)
        if (number, sample) not in skip
    )


def _random(seed: int, sample: int, ids: list[int]):
    """Random numbers that depend on the sample alone, not on what is decoded beside it."""
    import numpy as np

    digest = hashlib.sha256(f"{seed} {sample} {ids}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def next_group(gguf, waiting: deque[Sample], max_new_tokens: int) -> list[Sample]:
    """As many samples as fit the cache and one batch of prompts, taken off the front."""
    group, cells, tokens = [], 0, 0
    while waiting and len(group) < gguf.sequences:
        length = len(waiting[0].ids)
        need = length + max_new_tokens
        if group and (cells + need > gguf.context or tokens + need > gguf.capacity):
            break
        group.append(waiting.popleft())
        cells += need
        tokens += length
    return group


def decode_group(gguf, group: list[Sample], max_new_tokens: int, temperature: float) -> None:
    """Write every sample of a group to its end; each takes an equal share of the wall seconds."""
    began = time.perf_counter()
    active, logits = group, _read_prompts(gguf, group)
    while active:
        chosen, logprobs = _choose(logits, active, temperature)
        going = []
        for sample, token, logprob in zip(active, chosen, logprobs, strict=True):
            sample.logprobs.append(float(logprob))
            if gguf.ends(int(token)):
                sample.finish = "stop"
                continue
            sample.tokens.append(int(token))
            if len(sample.tokens) < max_new_tokens:
                going.append(sample)
        active = going
        if active:
            logits = gguf.decode([_last_token(sample) for sample in active])
    share = (time.perf_counter() - began) / len(group)
    for sample in group:
        sample.seconds = share


def _last_token(sample: Sample) -> tuple[int, int, int, bool]:
    """The newest token of a sample as a row of `Gguf.decode`."""
    position = len(sample.ids) + len(sample.tokens) - 1
    return sample.tokens[-1], position, sample.place, True


def _read_prompts(gguf, group: list[Sample]):
    """Logits [len(group), vocabulary] after each sample's prompt, which is computed once."""
    import numpy as np

    gguf.clear()
    first: dict[int, int] = {}  # prompt: the place that it is computed in
    rows = []
    for place, sample in enumerate(group):
        sample.place = place
        if sample.prompt not in first:
            first[sample.prompt] = place
            last = len(sample.ids) - 1
            rows += [(token, at, place, at == last) for at, token in enumerate(sample.ids)]
    parts = [rows[at : at + gguf.capacity] for at in range(0, len(rows), gguf.capacity)]
    logits = np.concatenate([gguf.decode(part) for part in parts])
    for sample in group:
        if first[sample.prompt] != sample.place:
            gguf.copy_sequence(first[sample.prompt], sample.place)
    line = {prompt: number for number, prompt in enumerate(first)}
    return logits[[line[sample.prompt] for sample in group]]


def log_softmax(logits):
    """Natural log-probabilities of float32 logits [..., vocabulary]."""
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _choose(logits, samples: list[Sample], temperature: float):
    """(tokens, their log-probabilities at temperature 1), one a row of logits.

    argmax at temperature 0, else inverse-CDF sampling with each sample's own random numbers.
    """
    import numpy as np

    logprobs = log_softmax(logits)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        weights = np.exp(log_softmax(logits / temperature)).cumsum(-1, dtype=np.float64)
        chosen = np.array(
            [_draw(row, sample.random) for row, sample in zip(weights, samples, strict=True)]
        )
    return chosen, logprobs[np.arange(len(chosen)), chosen]


def _draw(cumulative, random) -> int:
    """A token by its share of cumulative weights [vocabulary]."""
    import numpy as np

    place = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return min(int(place), len(cumulative) - 1)
