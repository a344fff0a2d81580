"""The batch on a CUDA device: a ring of columns, and one captured step that is replayed.

Kernel by kernel, a step of an 8B takes 35 to 60 ms to launch, whatever its batch; as one CUDA graph
it takes what the card needs (tests/bench/generation.py). A graph wants tensors that stay where they
are, so the cache is a fixed number of places of a fixed number of columns. All places write the
same column, and after the last column comes the first again: a row lives no longer than the ring
is, its mask says which columns are its own, and keys carry their true positions, so the order of
the columns does not matter. A row that has ended leaves its place to the next prompt; nothing is
copied but that prompt.
"""

from __future__ import annotations

from lib.generation import decoding

BLOCK = 16  # columns are a multiple of it, as the attention kernels like their masks
# prompts are admitted when this part of the places is free, so that they share a forward pass
FREE_PART = 8


def usable(model) -> bool:
    """Whether steps of this model can be captured: dense weights on a CUDA device."""
    return model.device.type == "cuda" and not getattr(model, "is_quantized", False)


def places(model, wanted: int, columns: int, free_bytes: int) -> int:
    """How many of `wanted` rows fit in `free_bytes`.

    A row needs its cache, its logits and what sampling makes of them. Raises ValueError when not
    one fits.
    """
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * columns * model.dtype.itemsize
    row = cache + 40 * config.vocab_size  # float32 and float64 copies of the logits of a row
    if free_bytes < row:
        raise ValueError(
            f"a row of {columns} tokens needs {row / 1e9:.2f} GB and {free_bytes / 1e9:.2f} GB are"
            " free; lower max_new_tokens or free the device"
        )
    return max(1, min(wanted, free_bytes // row))


class Ring:
    """The batch of `lib.generation.generate` on CUDA, with the methods of `decoding.Growing`.

    longest: tokens of the longest row, prompt and answer. The step is captured on CUDA alone;
    elsewhere it runs as is, which is what tests compare.
    """

    def __init__(self, model, tokenizer, size: int, longest: int):
        import torch

        from lib.generation import caches

        self.model, self.tokenizer, device = model, tokenizer, model.device
        self.columns = -(-longest // BLOCK) * BLOCK
        if device.type == "cuda":
            free = (
                torch.cuda.mem_get_info()[0]
                + torch.cuda.memory_reserved()
                - torch.cuda.memory_allocated()
            )
            size = places(
                model, size, self.columns, int(0.85 * free) - 2**30
            )  # a group of prompts takes under 1 GiB
        nobody = {"ended": True, "out": [], "uniform": torch.zeros(1, dtype=torch.float64)}
        self.rows: list[dict] = [nobody] * size
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.zeros(size, 1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(size, 1, dtype=torch.long, device=device)
        lowest = torch.finfo(model.dtype).min
        self.mask = torch.full((size, 1, 1, self.columns), lowest, dtype=model.dtype, device=device)
        self.cache = caches.ring(model.config, size, self.columns, self.column)
        self.graph = self.logits = self.taken = None

    def room(self) -> int:
        """How many rows may be admitted now."""
        free = sum(row["ended"] for row in self.rows)
        return free if free >= max(1, len(self.rows) // FREE_PART) else 0

    def admit(self, rows: list[dict]):
        """Run the prompts of new rows in free places: logits [rows, vocab]. `put` must follow."""
        import torch

        if not self.cache.layers[0].is_initialized:
            self._capture()
        free = [place for place, row in enumerate(self.rows) if row["ended"]][: len(rows)]
        for place, row in zip(free, rows, strict=True):
            self.rows[place] = row
        at, device = int(self.column), self.model.device
        logits = None
        for prompts in decoding.prompt_groups(row["ids"] for row in rows):
            group, last = decoding.prefill_group(self.model, self.tokenizer.pad_token_id, prompts)
            logits = last.new_empty(len(rows), last.shape[1]) if logits is None else logits
            order = {ids: index for index, ids in enumerate(prompts)}
            members = [index for index, row in enumerate(rows) if tuple(row["ids"]) in order]
            source = torch.tensor(
                [order[tuple(rows[index]["ids"])] for index in members], device=device
            )
            target = torch.tensor([free[index] for index in members], device=device)
            width = group["mask"].shape[1]
            columns = torch.arange(at - width, at, device=device) % self.columns
            for ring, layer in zip(self.cache.layers, group["cache"].layers, strict=True):
                for store, states in zip(ring.stores, (layer.keys, layer.values), strict=True):
                    store[target[:, None], :, columns] = states[source].transpose(1, 2)
            seen = torch.zeros_like(self.mask[0, 0, 0]).expand(len(members), -1).clone()
            seen[:, columns] = group["mask"][source].to(seen.dtype)
            self.mask[target, 0, 0] = (1 - seen) * torch.finfo(self.mask.dtype).min
            self.positions[target] = group["positions"][source]
            logits[members] = last[source]
        self.taken = torch.tensor(free, device=device)
        return logits

    def step(self):
        """Logits [places, vocab] after the tokens put last; those of empty places mean nothing."""
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        return self.logits

    def put(self, rows: list[dict], tokens) -> None:
        """Hand over the tokens [rows] chosen for the rows just admitted, or for all."""
        if self.taken is None:
            self.tokens.copy_(tokens[:, None])
        else:
            self.tokens[self.taken] = tokens[:, None]
            self.taken = None

    def _forward(self):
        """One step on the tensors that stay: see the own column, forward, move one column on."""
        self.mask.index_fill_(3, self.column, 0)
        logits = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.positions += 1
        self.column.copy_((self.column + 1) % self.columns)
        return logits

    def _capture(self) -> None:
        """Run a step on empty places, which makes the cache, and on CUDA capture the next."""
        import torch

        if self.model.device.type != "cuda":
            self._forward()
            return
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._forward()
