"""A GGUF model that answers: logits of given tokens, and generation with the log-probability of
every token."""

from __future__ import annotations

import ctypes as c
import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from lib.compression import llamacpp
from lib.generation import generate as cache


class Gguf:
    """A loaded GGUF file with its context; close it, or use `with`. LoRA adapters are loaded once
    and set by scale.

    context: cells of the key/value cache, shared by `sequences` that are decoded together.
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
        from lib.compression.from_gguf import table

        table(path)
        self.llama, self.path, self.sequences, self.context = (
            llamacpp.library(),
            Path(path),
            sequences,
            context,
        )
        self.model = self.llama.llama_model_load_from_file(
            str(path).encode(), self.llama.llama_model_default_params()
        )
        if not self.model:
            raise ValueError(f"{path}: llama.cpp does not load it: {' '.join(llamacpp._said[-3:])}")
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = context, min(context, 2048), sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # one pool of cells, so that short and long sequences share it
        self.handle = self.llama.llama_init_from_model(self.model, params)
        if not self.handle:
            self.llama.llama_model_free(self.model)
            raise ValueError(
                f"{path}: no context of {context} cells: {' '.join(llamacpp._said[-3:])}"
            )
        vocab = self.llama.llama_model_get_vocab(self.model)
        self.vocab, self.width = vocab, self.llama.llama_vocab_n_tokens(vocab)
        self.capacity = int(params.n_batch)
        self.batch = self.llama.llama_batch_init(self.capacity, 0, 1)
        self.adapters = []
        for adapter in adapters or []:
            table(adapter)
            loaded = self.llama.llama_adapter_lora_init(self.model, str(adapter).encode())
            if not loaded:
                raise ValueError(
                    f"{adapter}: does not fit {Path(path).name}: {' '.join(llamacpp._said[-3:])}"
                )
            self.adapters.append(loaded)
        self.set_adapters([0.0] * len(self.adapters))

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
        """Scale of every adapter from now on, 0 for off; the cache is emptied, since it holds what
        the old ones computed."""
        assert len(scales) == len(self.adapters), (scales, len(self.adapters))
        on = [
            (adapter, scale) for adapter, scale in zip(self.adapters, scales, strict=True) if scale
        ]
        handles = (c.c_void_p * max(1, len(on)))(*(adapter for adapter, _ in on))
        strengths = (c.c_float * max(1, len(on)))(*(scale for _, scale in on))
        code = self.llama.llama_set_adapters_lora(self.handle, handles, len(on), strengths)
        assert code == 0, code
        self.clear()

    def clear(self) -> None:
        """Forget every sequence."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.handle), True)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids by llama.cpp's own tokenizer; special: read control tokens such as <|im_end|>
        in the text."""
        raw = text.encode()
        room = (c.c_int32 * (len(raw) + 8))()
        count = self.llama.llama_tokenize(
            self.vocab, raw, len(raw), room, len(room), False, special
        )
        assert count >= 0, count
        return list(room[:count])

    def decode(self, rows: list[tuple[int, int, int, bool]]):
        """Compute (token, position, sequence, wants logits) rows; returns float32 [those that want,
        vocabulary], a copy."""
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
            raise RuntimeError(
                f"llama.cpp could not decode ({code}): {' '.join(llamacpp._said[-3:])}; raise"
                " `context`"
            )
        if not wanted:
            return np.zeros((0, self.width), np.float32)
        return np.ctypeslib.as_array(
            self.llama.llama_get_logits(self.handle), (wanted, self.width)
        ).copy()

    def logits(self, ids: list[int], start: int = 0):
        """Logits [len(ids) - start, vocabulary] of one sequence at every position from `start`
        on."""
        import numpy as np

        self.clear()
        pieces = [
            range(at, min(at + self.capacity, len(ids))) for at in range(0, len(ids), self.capacity)
        ]
        return np.concatenate(
            [self.decode([(ids[i], i, 0, i >= start) for i in piece]) for piece in pieces]
        )

    def samples(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[tuple[int, int, dict]]:
        """(prompt, sample, row) of n samples a prompt (token ids), as they are finished.

        `sequences` of them are decoded together; a prompt is computed once for its samples. The
        random numbers of a sample depend on (seed, prompt, index) alone. Rows: {ids (without end
        token), finish ("stop" or "length"), logprobs (natural, at temperature 1, of every token
        written, end token included), seconds (share of the wall time)}. Raises ValueError for a
        prompt that does not fit the context.
        """
        for number, ids in enumerate(prompts):
            if len(ids) + max_new_tokens > self.context:
                raise ValueError(
                    f"prompt {number}: {len(ids)} tokens and {max_new_tokens} new ones exceed"
                    f" {self.context} cells"
                )
        waiting = deque(
            {"prompt": number, "sample": sample, "ids": ids, "draw": _dice(seed, sample, ids)}
            for number, ids in enumerate(prompts)
            for sample in range(n)
        )
        while waiting:
            group = self._next_group(waiting, max_new_tokens)
            for job in self._group(group, max_new_tokens, temperature):
                row = {key: job[key] for key in ("finish", "logprobs", "seconds")}
                yield job["prompt"], job["sample"], {"ids": job["out"], **row}

    def generate(self, prompts: list[list[int]], **settings) -> list[list[dict]]:
        """All of `samples`, for each prompt its n rows in order."""
        found = [[None] * settings.get("n", 1) for _ in prompts]
        for prompt, sample, row in self.samples(prompts, **settings):
            found[prompt][sample] = row
        return found

    def _next_group(self, waiting: deque, max_new_tokens: int) -> list[dict]:
        """As many jobs as fit the cache and one batch of prompts, taken off the front."""
        group, cells, tokens = [], 0, 0
        while waiting and len(group) < self.sequences:
            length = len(waiting[0]["ids"])
            need = length + max_new_tokens
            if group and (cells + need > self.context or tokens + need > self.capacity):
                break
            group.append(waiting.popleft())
            cells += need
            tokens += length
        return group

    def _group(self, group: list[dict], max_new_tokens: int, temperature: float) -> list[dict]:
        import numpy as np

        began = time.perf_counter()
        self.clear()
        memory, first, rows = self.llama.llama_get_memory(self.handle), {}, []
        for place, job in enumerate(group):
            job |= {
                "seq": place,
                "out": [],
                "logprobs": [],
                "finish": "length",
                "at": len(job["ids"]),
            }
            if job["prompt"] not in first:
                first[job["prompt"]] = (place, len(first))
                rows += [(t, i, place, i == len(job["ids"]) - 1) for i, t in enumerate(job["ids"])]
        parts = [rows[at : at + self.capacity] for at in range(0, len(rows), self.capacity)]
        logits = np.concatenate([self.decode(part) for part in parts])
        for job in group:
            origin, line = first[job["prompt"]]
            job["row"] = line
            if origin != job["seq"]:
                self.llama.llama_memory_seq_cp(memory, origin, job["seq"], -1, -1)
        active = group
        while active:
            chosen, logprobs = _choose(logits[[job["row"] for job in active]], active, temperature)
            going = []
            for job, token, logprob in zip(active, chosen, logprobs, strict=True):
                job["logprobs"].append(float(logprob))
                if self.llama.llama_vocab_is_eog(self.vocab, int(token)):
                    job["finish"] = "stop"
                    continue
                job["out"].append(int(token))
                if len(job["out"]) < max_new_tokens:
                    going.append(job)
            for line, job in enumerate(going):
                job["row"] = line
            if going:
                logits = self.decode(
                    [
                        (job["out"][-1], job["at"] + len(job["out"]) - 1, job["seq"], True)
                        for job in going
                    ]
                )
            active = going
        share = (time.perf_counter() - began) / len(group)
        return [job | {"seconds": share} for job in group]


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
    """`lib.generation.generate.generate` for a GGUF: n samples a prompt, kept in `store`.

    Rows: {text, tokens, finish, seconds, logprobs, pieces (the text of each token)}.
    """
    from tqdm import tqdm

    chats = [cache.as_messages(prompt) for prompt in prompts]
    settings = (temperature, 1.0, max_new_tokens, seed)
    keys = [[cache.request_key(model_key, chat, *settings, k) for k in range(n)] for chat in chats]
    done = cache.load_store(store)
    wanted = [number for number, row in enumerate(keys) if not done.keys() >= set(row)]
    texts = [cache.render(tokenizer, chats[number]) for number in wanted]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    options = {"max_new_tokens": max_new_tokens, "n": n, "temperature": temperature, "seed": seed}
    shown = {"file": sys.stdout, "mininterval": 5, "ascii": True, "unit": "sample"}
    finished = gguf.samples(ids, **options)
    bar = tqdm(finished, total=n * len(ids), desc=progress or "llama.cpp", **shown)
    with cache.appending(store) as append:
        for place, sample, row in bar:
            made = {
                "key": keys[wanted[place]][sample],
                "text": tokenizer.decode(row["ids"], skip_special_tokens=True),
                "tokens": len(row["logprobs"]),
                "finish": row["finish"],
                "seconds": row["seconds"],
                "logprobs": [round(value, 5) for value in row["logprobs"]],
                "pieces": [tokenizer.decode([token]) for token in row["ids"]],
            }
            append(made)
            done[made["key"]] = made
    fields = ("text", "tokens", "finish", "seconds", "logprobs", "pieces")
    return [[{field: done[key][field] for field in fields} for key in row] for row in keys]


def _dice(seed: int, sample: int, ids: list[int]):
    """Random numbers that depend on the sample alone, not on what is decoded beside it."""
    import numpy as np

    digest = hashlib.sha256(f"{seed} {sample} {ids}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def log_softmax(logits):
    """Natural log-probabilities of float32 logits [..., vocabulary]."""
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _choose(logits, jobs: list[dict], temperature: float):
    """(tokens, their log-probabilities at temperature 1), one a row; argmax at 0, else inverse-CDF
    sampling."""
    import numpy as np

    logprobs = log_softmax(logits)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        weights = np.exp(log_softmax(logits / temperature)).cumsum(-1, dtype=np.float64)
        chosen = np.array(
            [
                min(
                    int(np.searchsorted(row, job["draw"].random() * row[-1], side="right")),
                    len(row) - 1,
                )
                for row, job in zip(weights, jobs, strict=True)
            ]
        )
    return chosen, logprobs[np.arange(len(chosen)), chosen]
