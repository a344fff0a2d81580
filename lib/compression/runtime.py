"""A GGUF model that answers: logits, losses on written answers, and generation.

Every generated token comes with its log-probability.
"""

from __future__ import annotations

import ctypes as c
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lib.compression import from_gguf, llamacpp, sampling
from lib.compression.sampling import log_softmax
from lib.generation import generate as cache


class Gguf:
    """A loaded GGUF file with its context; close it, or use `with`.

    context: cells of the key/value cache, shared by `sequences` that are decoded together.
    adapters: GGUF adapters, all off until `set_adapters` gives them a scale.
    Raises ValueError for a file that is not GGUF or that llama.cpp refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        context: int = 4096,
        sequences: int = 16,
        threads: int = 2,
        adapters: list | None = None,
    ):
        from_gguf.tensor_table(path)
        self.llama, self.path = llamacpp.library(), Path(path)
        self.sequences, self.context, self.capacity = sequences, context, min(context, 2048)
        self.model, self.handle = self._open(threads)
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.width = self.llama.llama_vocab_n_tokens(self.vocab)
        self.batch = self.llama.llama_batch_init(self.capacity, 0, 1)
        try:
            self.adapters = [self._open_adapter(adapter) for adapter in adapters or []]
        except ValueError:
            self.close()
            raise
        self.set_adapters([0.0] * len(self.adapters))

    def _open(self, threads: int) -> tuple[int, int]:
        """llama.cpp's handles of the model and of its context."""
        defaults = self.llama.llama_model_default_params()
        model = self.llama.llama_model_load_from_file(str(self.path).encode(), defaults)
        if not model:
            reason = llamacpp.last_messages()
            raise ValueError(f"{self.path}: llama.cpp does not load it: {reason}")
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = self.context, self.capacity, self.sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # one pool of cells, so that short and long sequences share it
        handle = self.llama.llama_init_from_model(model, params)
        if not handle:
            reason = llamacpp.last_messages()
            self.llama.llama_model_free(model)
            raise ValueError(f"{self.path}: no context of {self.context} cells: {reason}")
        return model, handle

    def _open_adapter(self, adapter: str | Path) -> int:
        """llama.cpp's handle of an adapter; it is freed with the model."""
        from_gguf.tensor_table(adapter)
        handle = self.llama.llama_adapter_lora_init(self.model, str(adapter).encode())
        if not handle:
            reason = llamacpp.last_messages()
            raise ValueError(f"{adapter}: does not fit {self.path.name}: {reason}")
        return handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Free model, context and adapters."""
        if self.handle:
            self.llama.llama_batch_free(self.batch)
            self.llama.llama_free(self.handle)
            self.llama.llama_model_free(self.model)
            self.handle = None

    def set_adapters(self, scales: list[float]) -> None:
        """Scale of every adapter from now on, 0 for off; every sequence is forgotten."""
        assert len(scales) == len(self.adapters), (scales, len(self.adapters))
        pairs = zip(self.adapters, scales, strict=True)
        on = [(adapter, scale) for adapter, scale in pairs if scale]
        handles = (c.c_void_p * max(1, len(on)))(*(adapter for adapter, _ in on))
        strengths = (c.c_float * max(1, len(on)))(*(scale for _, scale in on))
        code = self.llama.llama_set_adapters_lora(self.handle, handles, len(on), strengths)
        assert code == 0, code
        self.clear()

    def clear(self) -> None:
        """Forget every sequence."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.handle), True)

    def copy_sequence(self, origin: int, target: int) -> None:
        """Let sequence `target` begin with all that `origin` holds."""
        memory = self.llama.llama_get_memory(self.handle)
        self.llama.llama_memory_seq_cp(memory, origin, target, -1, -1)

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return self.llama.llama_vocab_is_eog(self.vocab, token)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids by llama.cpp's own tokenizer; special: read control tokens (<|im_end|>) too."""
        raw = text.encode()
        room = (c.c_int32 * (len(raw) + 8))()
        count = self.llama.llama_tokenize(
            self.vocab, raw, len(raw), room, len(room), False, special
        )
        assert count >= 0, count
        return list(room[:count])

    def decode(self, rows: list[tuple[int, int, int, bool]]):
        """Compute (token, position, sequence, wants logits) rows.

        Returns float32 [rows that want them, vocabulary], a copy. At most `capacity` rows.
        """
        import numpy as np

        assert len(rows) <= self.capacity, f"{len(rows)} tokens in one batch, {self.capacity} fit"
        batch, wanted = self.batch, 0
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wants) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wants
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            wanted += wants
        code = self.llama.llama_decode(self.handle, batch)
        if code:
            reason = llamacpp.last_messages()
            raise RuntimeError(f"llama.cpp could not decode ({code}): {reason}; raise `context`")
        if not wanted:
            return np.zeros((0, self.width), np.float32)
        logits = self.llama.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(logits, (wanted, self.width)).copy()

    def logits(self, ids: list[int], start: int = 0):
        """Logits [len(ids) - start, vocabulary] of one sequence at every position from `start`."""
        import numpy as np

        self.clear()
        rows = [(token, at, 0, at >= start) for at, token in enumerate(ids)]
        parts = [rows[at : at + self.capacity] for at in range(0, len(rows), self.capacity)]
        return np.concatenate([self.decode(part) for part in parts])

    def samples(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        skip: set[tuple[int, int]] = frozenset(),
    ) -> Iterator[tuple[int, int, dict]]:
        """(prompt number, sample number, row) of n samples a prompt (token ids), as they finish.

        `sequences` of them are decoded together; a prompt is computed once for its samples. The
        random numbers of a sample depend on (seed, prompt, sample number) alone; `skip` holds
        (prompt number, sample number) pairs that are not wanted.
        Rows: {ids (without end token), finish ("stop" or "length"), logprobs (natural, at
        temperature 1, of every token written, end token included), seconds (share of the wall
        time)}. Raises ValueError for a prompt that does not fit the context.
        """
        for number, ids in enumerate(prompts):
            if len(ids) + max_new_tokens > self.context:
                raise ValueError(
                    f"prompt {number}: {len(ids)} tokens and {max_new_tokens} new ones exceed"
                    f" {self.context} cells"
                )
        waiting = sampling.waiting_samples(prompts, n, seed, skip)
        while waiting:
            group = sampling.next_group(self, waiting, max_new_tokens)
            sampling.decode_group(self, group, max_new_tokens, temperature)
            for sample in group:
                row = {key: getattr(sample, key) for key in ("finish", "logprobs", "seconds")}
                yield sample.prompt, sample.sample, {"ids": sample.tokens, **row}

    def generate(self, prompts: list[list[int]], *, n: int = 1, **settings) -> list[list[dict]]:
        """All of `samples`, for each prompt its n rows in order."""
        answers = [[None] * n for _ in prompts]
        for prompt, sample, row in self.samples(prompts, n=n, **settings):
            answers[prompt][sample] = row
        return answers


FIELDS = ("text", "tokens", "finish", "seconds", "logprobs", "pieces")  # of a row of `generate`


def generate(
    gguf: Gguf,
    tokenizer,
    prompts: list,
    *,
    n: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    store: Path | None = None,
    model_key: str = "",
    progress: str = "",
) -> list[list[dict]]:
    """`lib.generation.generate.generate` for a GGUF: n samples a prompt.

    Rows: {text, tokens, finish, seconds, logprobs, pieces (the text of each token)}. What stands
    in `store` is not computed again: a killed call, made again, repeats no finished sample.
    """
    from tqdm import tqdm

    chats = [cache.as_messages(prompt) for prompt in prompts]
    settings = (temperature, max_new_tokens, seed)
    keys = [[cache.request_key(model_key, chat, *settings, k) for k in range(n)] for chat in chats]
    done = cache.load_store(store)
    skip = _known_samples(keys, done)
    texts = [cache.render(tokenizer, chat) for chat in chats]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    options = {"max_new_tokens": max_new_tokens, "n": n, "temperature": temperature, "seed": seed}
    shown = {"file": sys.stdout, "mininterval": 5, "ascii": True, "unit": "sample"}
    finished = gguf.samples(ids, **options, skip=skip)
    total = n * len(prompts) - len(skip)
    with cache.appending(store) as append:
        for prompt, sample, row in tqdm(finished, progress or "llama.cpp", total, **shown):
            made = {"key": keys[prompt][sample], **_answer_row(tokenizer, row)}
            append(made)
            done[made["key"]] = made
    return [[{name: done[key][name] for name in FIELDS} for key in row] for row in keys]


def _known_samples(keys: list[list[str]], done: dict) -> set[tuple[int, int]]:
    """(prompt number, sample number) of what is done, or stands earlier among the same keys."""
    known, skip = set(done), set()
    for prompt, row in enumerate(keys):
        for sample, key in enumerate(row):
            if key in known:
                skip.add((prompt, sample))
            known.add(key)
    return skip


def _answer_row(tokenizer, row: dict) -> dict:
    """A row of `Gguf.samples` as text, with FIELDS."""
    return {
        "text": tokenizer.decode(row["ids"], skip_special_tokens=True),
        "tokens": len(row["logprobs"]),
        "finish": row["finish"],
        "seconds": row["seconds"],
        "logprobs": [round(value, 5) for value in row["logprobs"]],
        "pieces": [tokenizer.decode([token]) for token in row["ids"]],
    }


def answer_places(example: dict) -> list[int]:
    """Positions whose next token is the assistant's, in an example of `conversations.dataset`."""
    return [place - 1 for place, label in enumerate(example["labels"]) if place and label >= 0]


def answer_losses(gguf: Gguf, examples, source: Path | None = None) -> dict[str, list]:
    """Teacher-forced losses on the assistant's tokens, summed a conversation, in order.

    {"nats" (loss), "tokens", "right" (most likely token is the written one), "seconds"} lists; with
    `source`, the file of `ladder.reference`, also "same" and "kl", see `answer_sums`.
    """
    import numpy as np

    table, at = np.load(source, mmap_mode="r") if source else None, 0
    columns: dict[str, list] = {}
    for example in examples:
        places, ids = answer_places(example), list(example["input_ids"])
        began = time.perf_counter()
        logits = gguf.logits(ids[: places[-1] + 1], places[0])
        seconds = time.perf_counter() - began
        logprobs = log_softmax(logits[[place - places[0] for place in places]])
        reference = np.asarray(table[at : at + len(places)]) if source else None
        at += len(places)
        written = [ids[place + 1] for place in places]
        for key, value in {**answer_sums(logprobs, written, reference), "seconds": seconds}.items():
            columns.setdefault(key, []).append(value)
    return columns


def answer_sums(logprobs, written: list[int], source=None) -> dict:
    """Sums over the tokens of one answer, from log-probabilities [tokens, vocabulary].

    {"nats", "tokens", "right"}; with `source`, log-probabilities of the source model, also "same"
    (most likely token is the source's) and "kl" (nats from the source).
    """
    import numpy as np

    best = logprobs.argmax(-1)
    sums = {
        "nats": float(-logprobs[np.arange(len(written)), written].sum()),
        "tokens": len(written),
        "right": int((best == np.array(written)).sum()),
    }
    if source is not None:
        sums["same"] = int((best == source.argmax(-1)).sum())
        sums["kl"] = float((np.exp(source) * (source - logprobs)).sum())
    return sums
