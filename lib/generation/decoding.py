"""The batch while it is being decoded: a cache that grows in blocks, rows that come and go.

The cache is `lib.generation.caches`', the attention `lib.attention`'s.
`lib.generation.generate` is what notebooks call; tests/bench/generation.py compares it with
`model.generate`.
"""

from __future__ import annotations

# ended rows stay until they are this part of the batch: taking rows out copies the whole cache
ENDED_PART = 8


def prompt_groups(prompts, most_tokens: int = 4096, least_filled: float = 0.75):
    """Lists of distinct prompts of like length, longest first.

    A group has at most `most_tokens` with its padding, and no prompt shorter than `least_filled` of
    its longest: one long prompt in a batch would otherwise make padding of the rest.
    """
    distinct, start = sorted(dict.fromkeys(map(tuple, prompts)), key=len, reverse=True), 0
    while start < len(distinct):
        longest, end = len(distinct[start]), start + 1
        while (
            end < len(distinct)
            and (end + 1 - start) * longest <= most_tokens
            and (len(distinct[end]) >= least_filled * longest)
        ):
            end += 1
        yield distinct[start:end]
        start = end


def prefill(model, tokenizer, rows):
    """Run the prompts of `rows`, each distinct one once. Returns state, logits [rows, vocab]."""
    import torch

    state, logits, order = None, [], {}
    for prompts in prompt_groups(row["ids"] for row in rows):
        group, last = prefill_group(model, tokenizer.pad_token_id, prompts)
        order |= {ids: len(order) + index for index, ids in enumerate(prompts)}
        state = join(state, group)
        logits.append(last)
    repeat = [order[tuple(row["ids"])] for row in rows]
    return {**take(state, repeat), "rows": rows}, torch.cat(logits)[repeat]


def prefill_group(model, pad: int, prompts):
    """Run some prompts (token ids) left-padded together. Returns state, logits [prompts, vocab]."""
    import torch

    from lib.generation import caches

    width = max(len(prompt) for prompt in prompts)
    padding = [width - len(prompt) for prompt in prompts]
    ids = [[pad] * free + list(prompt) for free, prompt in zip(padding, prompts, strict=True)]
    ids = torch.tensor(ids, device=model.device)
    mask = torch.tensor([[0] * free + [1] * (width - free) for free in padding])
    mask = mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = caches.roomy(model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    kept = {"rows": list(prompts), "cache": cache, "mask": mask, "positions": positions[:, -1:] + 1}
    return kept | {"tokens": ids[:, -1:]}, logits


def step(model, state):
    """Feed the last chosen tokens, move the state one position on; returns logits [rows, vocab]."""
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


def take(state, index: list[int]):
    """The state with the rows at `index`, without columns that are padding for all of them."""
    import torch

    chosen = torch.tensor(index, device=state["mask"].device)
    mask = state["mask"].index_select(0, chosen)
    first = int(mask.any(0).int().argmax())
    for layer in state["cache"].layers:
        layer.rebuild(lambda tensor: tensor.index_select(0, chosen)[:, :, first:])
    tensors = {name: state[name].index_select(0, chosen) for name in ("positions", "tokens")}
    return {**state, **tensors, "mask": mask[:, first:]}


def select(state, keep: list[int]):
    """Unfinished rows of a state, or None when all are finished."""
    if not keep:
        return None
    if len(keep) == len(state["rows"]):
        return state
    return {**take(state, keep), "rows": [state["rows"][index] for index in keep]}


def join(first, second):
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
    return {
        **joined,
        "rows": first["rows"] + second["rows"],
        "cache": first["cache"],
        "mask": torch.cat(masks),
    }


class Growing:
    """The batch of `lib.generation.generate` whose cache grows; rows leave when they have ended.

    A row is a dict with "ids" (prompt) and "ended". Rows are admitted when half of the batch is
    free.
    """

    def __init__(self, model, tokenizer, size: int):
        self.model, self.tokenizer, self.size = model, tokenizer, size
        self.state = self.new = None

    @property
    def rows(self) -> list[dict]:
        return self.state["rows"] if self.state else []

    def room(self) -> int:
        """How many rows may be admitted now."""
        free = self.size - len(self.rows)
        return free if free >= max(1, self.size // 2) else 0

    def admit(self, rows: list[dict]):
        """Run the prompts of new rows; returns logits [rows, vocab]. `put` must follow."""
        self.new, logits = prefill(self.model, self.tokenizer, rows)
        return logits

    def step(self):
        """Logits [rows, vocab] that follow the tokens put last."""
        return step(self.model, self.state)

    def put(self, rows: list[dict], tokens) -> None:
        """Hand over the tokens [rows] chosen for the rows just admitted, or for all.

        Ended rows may leave.
        """
        state = {**(self.new or self.state), "tokens": tokens[:, None]}
        live = [index for index, row in enumerate(rows) if not row["ended"]]
        if len(rows) - len(live) >= max(1, len(rows) // ENDED_PART):
            state = select(state, live)
        self.state, self.new = join(self.state, state) if self.new else state, None
