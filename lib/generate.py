"""Text generation in process: batched, resumable, and reproducible a sample at a time.

Why not `model.generate`: on a CPU it spends two thirds of its time copying the key/value cache and repeating grouped
heads, prefills the same prompt once a sample, and keeps finished rows in the batch. The loop below uses transformers'
own extension points (attention interface, cache layers) and is compared with it in tests/bench/generation.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import deque
from pathlib import Path

ATTENTION = "grouped_sdpa"


def grouped_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """SDPA that treats the query heads of one key/value head as extra query positions while decoding.

    Shapes: query [batch, heads, 1, dim], key and value [batch, kv_heads, length, dim]. Nothing is repeated, so the
    cache is read once instead of heads / kv_heads times. Longer queries (prefill, training) take transformers' SDPA.
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query.shape
    if length > 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, heads // groups, groups, width)
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, width), None


def register_attention() -> None:
    """Make `attn_implementation=ATTENTION` known to transformers. Harmless when called twice."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _roomy_cache(config):
    """A DynamicCache whose layers grow in blocks, so that a decoding step writes one column instead of copying all."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        room = 64

        def lazy_initialization(self, key_states, value_states):
            self.dtype, self.device = key_states.dtype, key_states.device
            self.stores, self.length, self.is_initialized = None, 0, True

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            end = self.length + key_states.shape[2]
            if self.stores is None or end > self.stores[0].shape[2]:
                self._grow(key_states, end)
            for store, states in zip(self.stores, (key_states, value_states), strict=True):
                store[:, :, self.length : end] = states
            self.length = end
            self.keys, self.values = (store[:, :, :end] for store in self.stores)
            return self.keys, self.values

        def _grow(self, like, end):
            batch, heads, _, width = like.shape
            stores = [
                torch.empty(batch, heads, end + self.room, width, dtype=like.dtype, device=like.device) for _ in "kv"
            ]
            if self.stores is not None:
                for new, old in zip(stores, self.stores, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            self.stores = stores

        def get_seq_length(self):
            return self.length if self.is_initialized else 0

        def rebuild(self, change):
            """Replace keys and values, each [batch, kv_heads, length, width], by change(tensor)."""
            self.stores = [change(store[:, :, : self.length]).contiguous() for store in self.stores]
            self.length = self.stores[0].shape[2]
            self.keys, self.values = self.stores

        def join(self, other):
            """Append the rows of another layer; the shorter of the two is filled with zeros on its left."""
            width, (mine, theirs) = max(self.length, other.length), (self.length, other.length)
            stores = []
            for a, b in zip(self.stores, other.stores, strict=True):
                shape = (a.shape[0] + b.shape[0], a.shape[1], width + self.room, a.shape[3])
                store = torch.zeros(shape, dtype=a.dtype, device=a.device)
                store[: a.shape[0], :, width - mine : width] = a[:, :, :mine]
                store[a.shape[0] :, :, width - theirs : width] = b[:, :, :theirs]
                stores.append(store)
            self.stores, self.length = stores, width
            self.keys, self.values = (store[:, :, :width] for store in stores)

    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() for _ in range(config.num_hidden_layers)]
    return cache


def render(tokenizer, messages: list[dict]) -> str:
    """Chat-template text that ends where the assistant is to speak."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def as_messages(prompt: str | list[dict], system: str | None = None) -> list[dict]:
    """A user text, or a list of messages, as messages; `system` goes first when given."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [{"role": "system", "content": system}, *messages] if system else messages


def request_key(model_key: str, messages, temperature, top_p, max_new_tokens, seed, sample) -> str:
    """32 hex digits naming one sample: same model, prompt, settings, seed and index, same key."""
    settings = [model_key, messages, float(temperature), float(top_p), int(max_new_tokens), int(seed), int(sample)]
    return hashlib.sha256(json.dumps(settings, ensure_ascii=False).encode()).hexdigest()[:32]


def load_store(path: Path | None) -> dict[str, dict]:
    """Finished generations by key. A last line torn by a kill is cut off; torn lines elsewhere raise ValueError."""
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
            raise ValueError(f"{path}, line {number}: not JSON; move the file away to generate again") from error
        done[row["key"]] = row
    return done


def generate(
    model,
    tokenizer,
    prompts: list,
    *,
    n: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    store: Path | None = None,
    model_key: str = "",
    system: str | None = None,
    progress: str = "",
) -> list[list[dict]]:
    """Generate n samples a prompt.

    Args:
        prompts: user texts, or message lists.
        temperature: 0 is greedy. A sample's random numbers depend on (seed, prompt, sample index) alone, not on what
            shares its batch; in bf16 the batch still moves logits by rounding.
        batch_size: sequences decoded together; freed places are refilled while decoding.
        store: JSON-lines file of finished samples; what it holds is not generated again.
        model_key: `models.key(...)`; required with a store, so that another model's text is never reused.
    Returns: for each prompt n dicts {text, tokens, finish ("stop" or "length"), seconds}; seconds is the sample's
        share of the wall time, so that sum(tokens) / sum(seconds) is the throughput.
    Raises: ValueError for a prompt that leaves no room in the context, or a store without a model key.
    """
    if store is not None and not model_key:
        raise ValueError("generate: a store needs model_key, or texts of another model could be taken from it")
    assert n >= 1 and max_new_tokens >= 1 and temperature >= 0, (n, max_new_tokens, temperature)
    chats = [as_messages(prompt, system) for prompt in prompts]
    keys = [
        [request_key(model_key, chat, temperature, top_p, max_new_tokens, seed, sample) for sample in range(n)]
        for chat in chats
    ]
    done = load_store(store)
    missing = {key: chat for chat, row in zip(chats, keys, strict=True) for key in row if key not in done}
    if missing:
        requests = [
            {"key": key, "ids": ids} for key, ids in zip(missing, _tokenise(tokenizer, missing.values()), strict=True)
        ]
        context = getattr(model.config, "max_position_embeddings", None)
        longest = max(len(request["ids"]) for request in requests)
        if context and longest + max_new_tokens > context:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
                "shorten the prompt or lower max_new_tokens"
            )
        for row in _decode(model, tokenizer, requests, temperature, top_p, max_new_tokens, batch_size, store, progress):
            done[row["key"]] = row
    fields = ("text", "tokens", "finish", "seconds")
    return [[{field: done[key][field] for field in fields} for key in row] for row in keys]


def _tokenise(tokenizer, chats) -> list[list[int]]:
    texts = [render(tokenizer, chat) for chat in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def stop_ids(model, tokenizer) -> list[int]:
    """Token ids that end an answer: the generation config's, and the tokenizer's end of sequence."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(each for each in ids if each is not None)


def _decode(model, tokenizer, requests, temperature, top_p, max_new_tokens, batch_size, store, progress):
    """Decode all requests, refilling freed places; yields finished rows and appends each to the store first."""
    import torch
    from tqdm import tqdm

    stops = torch.tensor(stop_ids(model, tokenizer), device=model.device)
    # longest first: the batch that needs the most memory comes first, and the tail is made of short ones
    queue = deque(sorted(requests, key=lambda request: -len(request["ids"])))
    active = None
    bar = tqdm(
        total=len(requests), desc=progress or "generate", file=sys.stdout, mininterval=5, ascii=True, unit="sample"
    )
    handle = open(store, "a", encoding="utf-8") if store is not None else None  # noqa: SIM115 (closed below)
    written, began = 0, time.perf_counter()
    try:
        with torch.inference_mode():
            while queue or active:
                start = time.perf_counter()
                room = batch_size - (len(active["rows"]) if active else 0)
                admit = bool(queue) and room >= max(1, batch_size // 2)
                if admit:
                    rows = [queue.popleft() for _ in range(min(room, len(queue)))]
                    for row in rows:
                        row |= {"out": [], "seconds": 0.0, "uniform": _uniform(row["key"], max_new_tokens)}
                    state, logits = _prefill(model, tokenizer, rows)
                else:
                    state, logits = active, _step(model, active)
                chosen = _choose(logits, state["rows"], temperature, top_p)
                ended = torch.isin(chosen, stops).tolist()
                state["tokens"] = chosen[:, None]
                share, keep = (time.perf_counter() - start) / len(state["rows"]), []
                for index, (row, token) in enumerate(zip(state["rows"], chosen.tolist(), strict=True)):
                    row["seconds"] += share
                    row["out"].append(token)
                    if not ended[index] and len(row["out"]) < max_new_tokens:
                        keep.append(index)
                        continue
                    finished = _finish(tokenizer, row, ended[index])
                    if handle is not None:
                        handle.write(json.dumps(finished, ensure_ascii=False) + "\n")
                        handle.flush()
                    written += finished["tokens"]
                    bar.set_postfix_str(f"{written / (time.perf_counter() - began):.0f} tok/s", refresh=False)
                    bar.update()
                    yield finished
                state = _select(state, keep)
                active = _join(active, state) if admit else state
    finally:
        bar.close()
        if handle is not None:
            handle.close()


def _prefill(model, tokenizer, rows):
    """Run the prompts of `rows` left-padded, each distinct one once. Returns state, logits [rows, vocab]."""
    import torch

    order: dict[tuple, int] = {}
    for row in rows:
        order.setdefault(tuple(row["ids"]), len(order))
    width, pad = max(len(ids) for ids in order), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(each)) + list(each) for each in order], device=model.device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in order], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = _roomy_cache(model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    state = {"rows": rows, "cache": cache, "mask": mask, "positions": positions[:, -1:] + 1, "tokens": ids[:, -1:]}
    repeat = [order[tuple(row["ids"])] for row in rows]
    return _take(state, repeat), logits[repeat]


def _step(model, state):
    """Feed the last chosen tokens; returns logits [rows, vocab] and moves the state one position on."""
    import torch

    state["mask"] = torch.cat([state["mask"], state["mask"].new_ones(len(state["rows"]), 1)], 1)
    logits = model(
        input_ids=state["tokens"],
        attention_mask=state["mask"],
        position_ids=state["positions"],
        past_key_values=state["cache"],
        use_cache=True,
    ).logits[:, -1]
    state["positions"] = state["positions"] + 1
    return logits


def _take(state, index: list[int]):
    """The state with the rows at `index` of its tensors; columns that are padding for all of them go."""
    import torch

    chosen = torch.tensor(index, device=state["mask"].device)
    mask = state["mask"].index_select(0, chosen)
    first = int(mask.any(0).int().argmax())
    for layer in state["cache"].layers:
        layer.rebuild(lambda tensor: tensor.index_select(0, chosen)[:, :, first:])
    tensors = {name: state[name].index_select(0, chosen) for name in ("positions", "tokens")}
    return {**state, **tensors, "mask": mask[:, first:]}


def _select(state, keep: list[int]):
    """Unfinished rows of a state, or None when all are finished."""
    if not keep:
        return None
    if len(keep) == len(state["rows"]):
        return state
    return {**_take(state, keep), "rows": [state["rows"][index] for index in keep]}


def _join(first, second):
    """Two states as one; the shorter cache gets masked columns on its left."""
    import torch
    from torch.nn.functional import pad

    if first is None or second is None:
        return first or second
    width = max(first["mask"].shape[1], second["mask"].shape[1])
    for one, other in zip(first["cache"].layers, second["cache"].layers, strict=True):
        one.join(other)
    masks = [pad(state["mask"], (width - state["mask"].shape[1], 0)) for state in (first, second)]
    joined = {name: torch.cat([first[name], second[name]]) for name in ("positions", "tokens")}
    return {**joined, "rows": first["rows"] + second["rows"], "cache": first["cache"], "mask": torch.cat(masks)}


def _uniform(key: str, count: int):
    """`count` uniform numbers that depend on the sample's key alone."""
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(int(key[:15], 16)), dtype=torch.float64)


def _choose(logits, rows, temperature: float, top_p: float):
    """Next token of each row [rows]: argmax at temperature 0, else inverse-CDF sampling with the row's own numbers."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, index = probabilities.sort(-1, descending=True)
        outside = (
            ordered.cumsum(-1) - ordered >= top_p
        )  # nucleus sampling, Holtzman et al. 2020: the first token always stays
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered.masked_fill(outside, 0))
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    draw = torch.stack([row["uniform"][len(row["out"])] for row in rows]).to(logits.device)
    return (
        torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
        .squeeze(1)
        .clamp(max=logits.shape[1] - 1)
    )


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
