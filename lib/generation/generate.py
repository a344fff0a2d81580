"""Text generation in process: batched, resumable, and reproducible a sample at a time.

Why not `model.generate`: on a CPU it spends two thirds of its time copying the key/value cache and
repeating grouped heads, prefills the same prompt once a sample, and keeps finished rows in the
batch. The loop below avoids the four (`lib.generation.decoding`) and is compared with it in
tests/bench/generation.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.generation import decoding, decoding_graph


def render(tokenizer, messages: list[dict]) -> str:
    """Chat-template text that ends where the assistant is to speak."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def as_messages(prompt: str | list[dict]) -> list[dict]:
    """A user text, or a list of messages, as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def request_key(model_key: str, messages, temperature, max_new_tokens, seed, sample) -> str:
    """32 hex digits naming one sample: same model, prompt, settings, seed and index, same key."""
    settings = [
        model_key,
        messages,
        float(temperature),
        1.0,  # top_p: nothing is cut off
        int(max_new_tokens),
        int(seed),
        int(sample),
    ]
    return hashlib.sha256(json.dumps(settings, ensure_ascii=False).encode()).hexdigest()[:32]


def load_store(path: Path | None) -> dict[str, dict]:
    """Finished generations by key; a last line torn by a kill is cut off.

    Raises ValueError for torn lines elsewhere.
    """
    done: dict[str, dict] = {}
    if path is None or not Path(path).exists():
        return done
    raw = Path(path).read_bytes()
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write that a kill interrupted
                with open(path, "r+b") as handle:
                    handle.truncate(len(raw) - len(line))
                break
            raise ValueError(
                f"{path}, line {number}: not JSON; move the file away to generate again"
            ) from error
        done[row["key"]] = row
    return done


@contextmanager
def appending(store: Path | None) -> Iterator[Callable[[dict], None]]:
    """A function that adds one finished row to a store at once; without a store it does nothing."""
    if store is None:
        yield lambda row: None
        return
    with open(store, "a", encoding="utf-8") as handle:

        def append(row: dict) -> None:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            handle.flush()

        yield append


def generate(
    model,
    tokenizer,
    prompts: list,
    *,
    n: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    store: Path | None = None,
    model_key: str = "",
    progress: str = "",
) -> list[list[dict]]:
    """Generate n samples a prompt.

    Args:
        prompts: user texts, or message lists.
        temperature: 0 is greedy. A sample's random numbers depend on (seed, prompt, sample index)
            alone, not on what shares its batch; in bf16 the batch still moves logits by rounding.
        batch_size: sequences decoded together; freed places are refilled while decoding.
        store: JSON-lines file of finished samples; what it holds is not generated again.
        model_key: `models.key(...)`; required with a store, so that another model's text is never
            reused.
    Returns: for each prompt n dicts {text, tokens, finish ("stop" or "length"), seconds}; seconds
        is the sample's share of the wall time, so that sum(tokens) / sum(seconds) is the
        throughput.
    Raises: ValueError for a prompt that leaves no room in the context, or a store without a key.
    """
    if store is not None and not model_key:
        raise ValueError(
            "generate: a store needs model_key, or texts of another model could be taken from it"
        )
    assert n >= 1 and max_new_tokens >= 1 and temperature >= 0, (n, max_new_tokens, temperature)
    chats = [as_messages(prompt) for prompt in prompts]
    settings = (temperature, max_new_tokens, seed)
    keys = [
        [request_key(model_key, chat, *settings, sample) for sample in range(n)] for chat in chats
    ]
    done = load_store(store)
    missing = {
        key: chat for chat, row in zip(chats, keys, strict=True) for key in row if key not in done
    }
    if missing:
        requests = _requests(model, tokenizer, missing, max_new_tokens)
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        options |= {"batch_size": batch_size, "store": store, "progress": progress}
        for row in _decode(model, tokenizer, requests, **options):
            done[row["key"]] = row
    fields = ("text", "tokens", "finish", "seconds")
    return [[{field: done[key][field] for field in fields} for key in row] for row in keys]


def _requests(model, tokenizer, missing: dict, max_new_tokens: int) -> list[dict]:
    """{"key", "ids"} of each missing sample; ValueError where the context has no room for it."""
    ids = _tokenise(tokenizer, missing.values())
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, ids))
    if context and longest + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's"
            f" context of {context}; shorten the prompt or lower max_new_tokens"
        )
    return [{"key": key, "ids": tokens} for key, tokens in zip(missing, ids, strict=True)]


def _tokenise(tokenizer, chats) -> list[list[int]]:
    texts = [render(tokenizer, chat) for chat in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def stop_ids(model, tokenizer) -> list[int]:
    """Token ids that end an answer: the generation config's, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {
        tokenizer.eos_token_id
    }
    return sorted(token for token in ids if token is not None)


def _decode(
    model, tokenizer, requests, *, temperature, max_new_tokens, batch_size, store, progress
):
    """Decode all requests, refilling freed places.

    Yields finished rows, each of them appended to the store first.
    """
    import torch

    stops = torch.tensor(stop_ids(model, tokenizer), device=model.device)
    # the longest first: what needs the most memory is at the beginning, and the tail is short
    queue = deque(sorted(requests, key=lambda request: -len(request["ids"])))
    batch = _batch(model, tokenizer, queue, batch_size, max_new_tokens)
    bar, live = _Progress(len(requests), progress or "generate"), 0
    with bar, appending(store) as append, torch.inference_mode():
        while queue or live:
            start = time.perf_counter()
            rows = [queue.popleft() for _ in range(min(batch.room(), len(queue)))]
            if rows:
                for row in rows:
                    row |= {"out": [], "ended": False, "seconds": 0.0}
                    row["uniform"] = _uniform(row["key"], max_new_tokens)
                logits = batch.admit(rows)
                live += len(rows)
            else:
                rows, logits = batch.rows, batch.step()
            chosen = _choose(logits, rows, temperature)
            stopped, tokens = torch.isin(chosen, stops).tolist(), chosen.tolist()
            share = (time.perf_counter() - start) / sum(not row["ended"] for row in rows)
            for row, stop in _advance(rows, tokens, stopped, share, max_new_tokens):
                live -= 1
                finished = _finish(tokenizer, row, stop)
                append(finished)
                bar.add(finished["tokens"])
                yield finished
            batch.put(rows, chosen)


def _batch(model, tokenizer, queue, batch_size: int, max_new_tokens: int):
    """The batch for this device, for at most `batch_size` of the queue at once."""
    size = min(batch_size, len(queue))
    if decoding_graph.usable(model):
        longest = len(queue[0]["ids"]) + max_new_tokens
        return decoding_graph.Ring(model, tokenizer, size, longest)
    return decoding.Growing(model, tokenizer, size)


def _advance(rows, tokens, stopped, share: float, max_new_tokens: int):
    """Give each live row its token and its share of the time; yields (row, stopped) as they end."""
    for row, token, stop in zip(rows, tokens, stopped, strict=True):
        if row["ended"]:
            continue
        row["seconds"] += share
        row["out"].append(token)
        row["ended"] = stop or len(row["out"]) == max_new_tokens
        if row["ended"]:
            yield row, stop


class _Progress:
    """A plain progress line on stdout: samples finished, and tokens a second."""

    def __init__(self, total: int, label: str):
        from tqdm import tqdm

        line = {"file": sys.stdout, "mininterval": 5, "ascii": True, "unit": "sample"}
        self.bar = tqdm(total=total, desc=label, **line)
        self.written, self.began = 0, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def add(self, tokens: int) -> None:
        self.written += tokens
        rate = self.written / (time.perf_counter() - self.began)
        self.bar.set_postfix_str(f"{rate:.0f} tok/s", refresh=False)
        self.bar.update()


def _uniform(key: str, count: int):
    """`count` uniform numbers that depend on the sample's key alone."""
    import torch

    return torch.rand(
        count, generator=torch.Generator().manual_seed(int(key[:15], 16)), dtype=torch.float64
    )


def _choose(logits, rows, temperature: float):
    """Next token of each row [rows]: argmax at temperature 0, else sampled by inverse CDF.

    The uniform numbers are the row's own.
    """
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # a full row waits to be taken out
    places = [min(len(row["out"]), len(row["uniform"]) - 1) for row in rows]
    draws = [row["uniform"][place] for row, place in zip(rows, places, strict=True)]
    wanted = torch.stack(draws).to(logits.device) * cumulative[:, -1]
    chosen = torch.searchsorted(cumulative, wanted[:, None], right=True).squeeze(1)
    return chosen.clamp(max=logits.shape[1] - 1)


def _finish(tokenizer, row, ended: bool) -> dict:
    text = tokenizer.decode(row["out"], skip_special_tokens=True)
    finish = "stop" if ended else "length"
    return {
        "key": row["key"],
        "text": text,
        "tokens": len(row["out"]),
        "finish": finish,
        "seconds": round(row["seconds"], 6),
    }
