"""LoRA training at the shape of Llama-3.1-8B, ours and its peers on one card, with random weights:
one table.

    python tests/bench/train_8b.py [--parts ours gradients trl unsloth fit scaling]

Needs a CUDA card with 80 GB and no download. Peers (TRL, Unsloth) run where they are installed and
are absent from the table where they are not. Every part is a process of its own and adds rows to
<out>/rows.jsonl as it goes, so that a part that dies loses nothing; tests/bench/results/train_8b.md
and .json are made from them. Lengths of real documents come from lengths.json beside this file.
`--tiny` rehearses every line on a CPU with a toy shape; it writes no results.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
RESULTS, LENGTHS = ROOT / "tests" / "bench" / "results", Path(__file__).with_name("lengths.json")
PARTS = {"ours": 260, "gradients": 120, "fit": 150, "trl": 200, "unsloth": 150, "scaling": 260}
TINY = "--tiny" in sys.argv
LENGTH, RANK, VOCABULARY = (64, 8, 259) if TINY else (2048, 64, 128_256)
LAYERS = 2 if TINY else 32


def emit(out: Path, row: dict) -> None:
    """One finished measurement: printed, and appended to rows.jsonl."""
    row = {
        key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()
    }
    print("ROW " + json.dumps(row), flush=True)
    with open(out / "rows.jsonl", "a") as handle:
        handle.write(json.dumps(row) + "\n")


def config():
    """The configuration of Llama-3.1-8B, or a toy of the same kind."""
    from transformers import LlamaConfig

    toy = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    full = {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        rope_parameters=rope,
        **(toy if TINY else full),
    )


def build(adapters: bool = True, dropout: float = 0.0):
    """A random bf16 model of the shape with peft's LoRA on the seven linears; B is not zero, as if
    trained a little."""
    import torch
    from transformers import LlamaForCausalLM

    from lib import models
    from lib.training import train

    start = time.perf_counter()
    torch.manual_seed(0)
    with models.device():
        model = LlamaForCausalLM._from_config(
            config(), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model.config.use_cache = False
    if adapters:
        with models.device():
            model = train.add_lora(model, RANK, 2 * RANK, dropout, 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01)
    print(f"built in {time.perf_counter() - start:.1f} s", flush=True)
    return model


def products(layers_only: bool = False) -> int:
    """Weights that take part in a product for every token."""
    c = config()
    kv = c.num_key_value_heads * c.hidden_size // c.num_attention_heads
    layer = 2 * c.hidden_size**2 + 2 * c.hidden_size * kv + 3 * c.hidden_size * c.intermediate_size
    return LAYERS * layer + (0 if layers_only else c.vocab_size * c.hidden_size)


def clock() -> float:
    """Seconds, after the device has finished all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def fresh() -> None:
    """Empty caches and peak counters."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def attempt(out: Path, name: str, function, *arguments, **options):
    """Run one measurement; an error becomes a row of its own and the part goes on."""
    start = time.perf_counter()
    try:
        fresh()
        return function(*arguments, **options)
    except Exception as error:
        emit(out, {"name": name, "error": f"{type(error).__name__}: {str(error)[:300]}"})
        traceback.print_exc()
    finally:
        fresh()
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


# ---- data ----------------------------------------------------------------------------------------


def fixed(documents: int, length: int = 0, seed: int = 1):
    """`documents` of one length, loss on every token: (input_ids, targets, lengths)."""
    return stream([(length or LENGTH, length or LENGTH)] * documents, seed)


def stream(pairs, seed: int = 1):
    """Random documents of (length, answer tokens) end to end: (input_ids, targets, lengths) on the
    device."""
    import torch

    from lib import models
    from lib.training.conversations import IGNORED

    lengths = [length for length, _ in pairs]
    ids = torch.randint(
        3, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(seed)
    )
    targets, end = ids.roll(-1), 0
    for length, answer in pairs:
        end += length
        targets[end - 1] = IGNORED
        targets[end - length : end - answer] = IGNORED
    return ids.to(models.device()), targets.to(models.device()), lengths


def real(tokens: int, steps: int, all_tokens: bool = False):
    """Streams of at most `tokens` tokens of documents as long as curated ones are."""
    pairs = [tuple(pair) for pair in json.loads(LENGTHS.read_text())["pairs"]]
    if TINY:
        pairs = [(max(2, length // 32), max(1, answer // 32)) for length, answer in pairs]
    streams, current = [], []
    for length, answer in pairs:
        if sum(each for each, _ in current) + length > tokens:
            streams.append(stream(current, len(streams)))
            current = []
            if len(streams) == steps:
                break
        current.append((length, length if all_tokens else answer))
    return streams


# ---- ours ----------------------------------------------------------------------------------------


def loop(out: Path, name: str, fast, batches, skip: int = 2, **extra) -> float:
    """Train on the streams with AdamW and clipping as `fit` does; emits and returns tokens/s after
    `skip` steps."""
    import torch

    parameters = fast.adapters
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=torch.cuda.is_available())
    marks, loss = [clock()], None
    for ids, targets, lengths in batches:
        loss = fast.loss(ids, targets, lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        marks.append(clock())
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    tokens = [len(ids) for ids, _, _ in batches]
    speed = sum(tokens[skip:]) / sum(seconds[skip:])
    spread = [round(t / s) for t, s in zip(tokens[skip:], seconds[skip:], strict=True)]
    emit(
        out,
        {
            "name": name,
            "tok_s": speed,
            "tokens": max(tokens),
            "peak_gib": peak_gib(),
            "loss": float(loss.detach()),
            "tflops_4n": 4 * products() * speed / 1e12,
            "first_s": seconds[0],
            "spread": spread,
            **extra,
        },
    )
    return speed


def ceilings(out: Path, model) -> None:
    """What the card does with the layers' own products alone, and with a copy."""
    import torch

    weights = [
        p
        for name, p in model.named_parameters()
        if name.endswith("proj.weight") or "proj.base_layer" in name
    ]
    inputs = {
        w.shape[1]: torch.randn(8 * LENGTH // 2, w.shape[1], device=w.device, dtype=w.dtype)
        for w in weights
    }
    seconds, end = [], clock() + (0 if TINY else 4)
    while not seconds or clock() < end:
        # as long as it takes to get warm: a card slows down under load
        start = clock()
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T
        seconds.append(clock() - start)
    flops = 2 * products(layers_only=True) * 8 * LENGTH // 2
    row = {
        "name": "ceiling",
        "first_tflops": flops / min(seconds[:5]) / 1e12,
        "matmul_tflops": flops / statistics.median(seconds[len(seconds) // 2 :]) / 1e12,
    }
    source = torch.empty(
        2**20 if TINY else 2**32, dtype=torch.uint8, device=weights[0].device
    ).random_(0, 255)
    target, seconds = torch.empty_like(source), []
    for _ in range(6):
        start = clock()
        target.copy_(source)
        seconds.append(clock() - start)
    emit(out, row | {"copy_tb_s": 2 * source.numel() / min(seconds) / 1e12})


def apart(fast_lora):
    """Replacements for `project` and `project_back` as separate products for base and adapters;
    returns a restorer."""
    import torch

    def narrow(group, i):
        return slice(group.bounds[i], group.bounds[i + 1]), slice(
            i * group.rank, (i + 1) * group.rank
        )

    def project(group, x, seen):
        base, low = x[:, : group.width], x[:, group.width :]
        low.copy_((base if seen is None else seen) @ group.matrix[group.rows :, : group.width].T)
        y = x.new_empty(len(x), group.rows)
        for i in range(len(group.A)):
            rows, at = narrow(group, i)
            torch.mm(base, group.matrix[rows, : group.width].T, out=y[:, rows])
            y[:, rows].addmm_(low[:, at], group.matrix[rows, group.width :][:, at].T)
        return y

    def project_back(group, dy, masks):
        assert not masks
        dx, low = dy.new_zeros(len(dy), group.width), dy[:, group.rows :]
        for i in range(len(group.A)):
            rows, at = narrow(group, i)
            dx.addmm_(dy[:, rows], group.matrix[rows, : group.width])
            low[:, at] = dy[:, rows] @ group.matrix[rows, group.width :][:, at]
        return dx.addmm_(low, group.matrix[group.rows :, : group.width]), None

    kept = fast_lora.project, fast_lora.project_back
    fast_lora.project, fast_lora.project_back = project, project_back
    return lambda: (
        setattr(fast_lora, "project", kept[0]),
        setattr(fast_lora, "project_back", kept[1]),
    )


def part_ours(out: Path) -> None:
    """Ceilings; our speed at fixed and real lengths; then one piece taken away at a time."""
    from lib.training import fast_lora

    model = build()
    attempt(out, "ceiling", ceilings, out, model)
    model.train()
    fast = fast_lora.FastLoRA(model)
    most = 8 if TINY else 6
    for documents in (2, 4, most):  # streams of 4,096 (for 40 GB cards), 8,192 and 12,288 tokens
        batches = [fixed(documents, seed=i) for i in range(6)]
        attempt(
            out,
            "fixed",
            loop,
            out,
            f"fixed 2048, {documents} documents",
            fast,
            batches,
            kind="fixed",
        )
    tokens = most * LENGTH
    attempt(out, "real", loop, out, "real lengths", fast, real(tokens, 8), kind="real")
    attempt(
        out,
        "real",
        loop,
        out,
        "real lengths, loss on all tokens",
        fast,
        real(tokens, 6, True),
        kind="piece",
    )
    batches = [fixed(most, seed=i) for i in range(5)]

    def without(name, change, restore):
        change()
        try:
            attempt(out, name, loop, out, name, fast, batches, kind="piece")
        finally:
            restore()

    run = fast_lora.run
    without(
        "no compiled kernels",
        lambda: setattr(fast_lora, "run", lambda function, *a: function(*a)),
        lambda: setattr(fast_lora, "run", run),
    )
    restore = []
    without(
        "base and adapter products apart",
        lambda: restore.append(apart(fast_lora)),
        lambda: restore.pop()(),
    )
    without(
        "every layer recomputed",
        lambda: setattr(fast, "recomputed", LAYERS),
        lambda: setattr(fast, "recomputed", 0),
    )


class Bare:
    """What `fit` needs of a data set: columns and rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, columns):
        return self


def part_fit(out: Path) -> None:
    """`lib.training.train.fit` itself, as notebook 10 calls it: Trainer, logging, clipping, real
    lengths, dropout.

    Started by `torchrun` it measures as many GPUs as there are processes; the first one reports.
    """
    import torch
    from accelerate import PartialState

    from lib.training import train

    state = PartialState(cpu=TINY)
    if not TINY:
        torch.cuda.set_device(state.local_process_index)
    pairs = json.loads(LENGTHS.read_text())["pairs"]
    if TINY:
        pairs = [(max(2, length // 32), max(1, answer // 32)) for length, answer in pairs]
    effective, steps = (8, 6) if TINY else (64 * max(1, int(os.environ.get("STEP_TIMES", "2"))), 14)
    made, rows = torch.Generator().manual_seed(1), []
    for length, answer in pairs[: effective * steps]:
        ids = torch.randint(3, VOCABULARY, (length,), generator=made).tolist()
        labels = [-100] * (length - answer) + ids[length - answer :]
        rows.append({"input_ids": ids, "labels": labels, "length": length})
    settings = {
        "epochs": 1,
        "max_steps": steps,
        "learning_rate": 5e-6,
        "warmup_share": 0.1,
        "micro_tokens": 0,
        "effective_batch": effective,
        "eval_steps": 10_000,
        "early_stopping_patience": 0,
        "seed": 1,
        "dtype": "bfloat16",
    }
    dropout = float(os.environ.get("DROPOUT", "0.05"))
    model = build(dropout=dropout)
    fresh()
    marks = Clock()
    folder = Path(tempfile.mkdtemp())
    result = train.fit(
        model, Bare(rows), Bare(rows[:8]), folder, settings, None, "x", callbacks=[marks]
    )
    seconds = [after - before for before, after in zip(marks.marks, marks.marks[1:], strict=False)]
    seen = [row["num_input_tokens_seen"] for row in result["history"] if "loss" in row]
    skip = 4
    speed = (seen[-1] - seen[skip - 1]) / sum(seconds[skip:])
    if state.is_main_process:
        spread = [round((b - a) / s) for a, b, s in zip(seen, seen[1:], seconds[1:], strict=False)]
        kind = "scaling" if "STEP_TIMES" in os.environ else "fit"
        emit(
            out,
            {
                "name": f"fit, real lengths, dropout {dropout}, {state.num_processes} GPU",
                "kind": kind,
                "gpus": state.num_processes,
                "tok_s": speed,
                "peak_gib": peak_gib(),
                "path": result["path"],
                "conversations_a_step": effective,
                "tokens_a_step": round(seen[-1] / len(seen)),
                "dropout": dropout,
                "spread": spread,
            },
        )
    state.destroy_process_group()


def part_scaling(out: Path) -> None:
    """`fit` on one GPU, on two and on all, each GPU with as many conversations a step."""
    import torch

    gpus = torch.cuda.device_count() or 2
    for processes in sorted({1, min(2, gpus), gpus}):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            __file__,
            "--part",
            "fit",
            "--out",
            str(out),
            *(["--tiny"] if TINY else []),
        ]
        times = {"STEP_TIMES": str(2 * processes)}
        subprocess.run(
            command,
            check=False,
            env=os.environ | times | ({"ACCELERATE_USE_CPU": "true"} if TINY else {}),
        )


def part_gradients(out: Path) -> None:
    """Loss and gradients at full depth, ours and peft's under autocast, against float32 document by
    document."""
    import torch

    from lib.training import fast_lora, losses

    model = build()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    ids, targets, lengths = real(LENGTH, 1)[0]
    learned = int((targets >= 0).sum())
    documents = list(zip(ids.split(lengths), targets.split(lengths), strict=True))

    def taken():
        grads = [p.grad.float().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return grads

    def one_by_one(dtype):
        total = 0.0
        for each, wanted in documents:
            with losses.autocast(dtype):
                hidden = model.get_base_model().model(input_ids=each[None], use_cache=False)[0][0][
                    wanted >= 0
                ]
                logits = model.get_base_model().lm_head(hidden).float()
            loss = (
                torch.nn.functional.cross_entropy(logits, wanted[wanted >= 0], reduction="sum")
                / learned
            )
            loss.backward()
            total += float(loss.detach())
        return total, taken()

    found = {"peft, bf16 autocast": one_by_one("bfloat16")}
    fast = fast_lora.FastLoRA(model)
    loss = fast.loss(ids, targets, lengths)
    loss.backward()
    found["ours"] = float(loss.detach()), taken()
    del fast
    model.float()
    fresh()
    torch.backends.cuda.matmul.allow_tf32 = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    reference, exact = one_by_one("float32")
    norm = sum(each.square().sum() for each in exact).sqrt()
    for name, (loss, grads) in found.items():
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(grads, exact, strict=True)]
        total = sum((a - b).square().sum() for a, b in zip(grads, exact, strict=True)).sqrt() / norm
        emit(
            out,
            {
                "name": f"gradients, {name}",
                "kind": "gradients",
                "loss": loss,
                "reference_loss": reference,
                "documents": len(lengths),
                "tokens": sum(lengths),
                "relative_error": float(total),
                "median_tensor": statistics.median(errors),
                "worst_tensor": max(errors),
            },
        )


def part_curve(out: Path, steps: int = 200) -> None:
    """Loss over 200 steps of the real SmolLM2 on its packaged conversations: peft's forward against
    ours, on a CPU too.

    Both start from one adapter, see the same batches without dropout and run in bf16 products (ours
    wholly in bf16). How far two runs of peft itself part that differ by rounding alone, float32
    against bf16, is the noise beside it.
    """
    import numpy as np
    import torch

    from lib import models
    from lib.training import conversations, fast_lora, losses, streams, train

    rows = [json.loads(line) for line in Path(os.environ["CURVE_ROWS"]).read_text().splitlines()]
    curves = {}
    for name, base in (
        ("peft bf16", "float32"),
        ("ours bf16", "bfloat16"),
        ("peft float32", "float32"),
    ):
        model, tokenizer = models.load("smollm2-135m-instruct", base)
        encoded = [
            conversations.encode(tokenizer, conversations.messages_of(row), 160) for row in rows
        ]
        encoded = [each for each in encoded if any(label >= 0 for label in each["labels"])]
        model = train.add_lora(model, 16, 32, 0.0, 1).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0)
        fast, curve, start = (
            fast_lora.FastLoRA(model) if name.startswith("ours") else None,
            [],
            time.process_time(),
        )
        for step in range(steps):
            batch = streams.flat([encoded[(2 * step + i) % len(encoded)] for i in range(2)])
            piece = streams.cut(batch, 10**6, padded=False)[0]
            piece = {
                key: value.to(model.device) if torch.is_tensor(value) else value
                for key, value in piece.items()
            }
            if fast:
                loss = fast.loss(**piece)
            else:
                with losses.autocast("float32" if name.endswith("32") else "bfloat16"):
                    loss = streams.plain_loss(model, **piece)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            curve.append(float(loss.detach()))
            if step % 20 == 19:
                print(f"{name}: step {step + 1}, loss {np.mean(curve[-20:]):.4f}", flush=True)
        curves[name] = curve
        emit(
            out,
            {
                "name": f"curve, {name}",
                "kind": "curve",
                "first_20": float(np.mean(curve[:20])),
                "last_20": float(np.mean(curve[-20:])),
                "cpu_s": time.process_time() - start,
            },
        )
    for one, two in (("ours bf16", "peft bf16"), ("peft float32", "peft bf16")):
        gap = np.abs(np.array(curves[one]) - np.array(curves[two]))
        emit(
            out,
            {
                "name": f"curve, {one} against {two}",
                "kind": "curve",
                "mean_gap": float(gap.mean()),
                "largest_gap": float(gap.max()),
                "last_20_gap": float(gap[-20:].mean()),
            },
        )
    (out / "curve.json").write_text(json.dumps(curves))


# ---- peers ---------------------------------------------------------------------------------------


class Clock:
    """Trainer callback that notes the time after each step."""

    def __new__(cls):
        from transformers import TrainerCallback

        class Marks(TrainerCallback):
            marks = []

            def on_step_begin(self, *arguments, **named):
                self.marks = self.marks or [clock()]

            def on_step_end(self, *arguments, **named):
                self.marks = [*self.marks, clock()]

        return Marks()


def sft(
    out: Path, name: str, model, micro: int, documents, steps: int, packing: bool = False, **options
) -> None:
    """TRL's SFTTrainer on documents of (length, answer tokens); tokens are those of documents,
    never padding."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tests import tiny

    for owner in (
        model,
        model.get_base_model(),
    ):
        # what an earlier Trainer left on the model would turn autocast off
        for key in ("forward", "_original_forward", "_is_accelerate_prepared"):
            owner.__dict__.pop(key, None)
    made = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(3, VOCABULARY, (length,), generator=made).tolist() for length, _ in documents
    ]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=micro,
        max_steps=steps,
        max_length=LENGTH,
        bf16=True,
        packing=packing,
        save_strategy="no",
        report_to="none",
        learning_rate=1e-4,
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=TINY,
        include_num_input_tokens_seen="no",
        **options,
    )
    marks = Clock()
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tiny.tokenizer(),
        callbacks=[marks],
    )
    seen, collate = [], trainer.data_collator

    def counted(examples):
        seen.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    seconds = [after - before for before, after in zip(marks.marks, marks.marks[1:], strict=False)]
    skip = 2 if steps > 3 else 1
    speed = sum(seen[skip:steps]) / sum(seconds[skip:])
    emit(
        out,
        {
            "name": name,
            "kind": "peer",
            "tok_s": speed,
            "tokens": micro * LENGTH,
            "peak_gib": peak_gib(),
            "spread": [
                round(t / s) for t, s in zip(seen[skip:steps], seconds[skip:], strict=False)
            ],
        },
    )


def part_trl(out: Path) -> None:
    """TRL as a user calls it: its defaults at fixed length, and its packing of real documents."""
    model = build()
    whole = [(LENGTH, LENGTH)] * 64
    pairs = json.loads(LENGTHS.read_text())["pairs"]
    if TINY:
        pairs = [(max(2, length // 32), 1) for length, _ in pairs]
    attempt(out, "trl", sft, out, "TRL default, fixed 2048", model, 8, whole, 6)
    attempt(out, "trl", sft, out, "TRL packing, real lengths", model, 4, pairs, 10, packing=True)
    attempt(out, "trl", sft, out, "TRL default (padded), real lengths", model, 8, pairs, 8)
    model.gradient_checkpointing_disable()
    attempt(
        out,
        "trl",
        sft,
        out,
        "TRL with Liger, nothing recomputed, fixed 2048",
        model,
        4,
        whole,
        5,
        use_liger_kernel=True,
        gradient_checkpointing=False,
    )


def part_unsloth(out: Path) -> None:
    """Unsloth's bf16 LoRA at fixed length, in the same loop as ours, nothing recomputed."""
    import unsloth  # noqa: F401 I001 (patches the libraries that are imported after it)
    import torch
    from unsloth import FastLanguageModel

    from lib.training import train
    from tests import tiny

    folder = tempfile.mkdtemp()
    model = build(adapters=False)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    del model
    fresh()
    model, _ = FastLanguageModel.from_pretrained(
        folder,
        max_seq_length=LENGTH,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        fix_tokenizer=False,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        target_modules=train.LINEARS,
        lora_alpha=2 * RANK,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=False,
        random_state=1,
        max_seq_length=LENGTH,
    )
    FastLanguageModel.for_training(model, use_gradient_checkpointing=False)

    class Peer:
        adapters = [p for p in model.parameters() if p.requires_grad]

        @staticmethod
        def loss(ids, targets, lengths):
            with torch.autocast("cuda", torch.bfloat16):
                rows = ids.view(len(lengths), -1)
                return model(input_ids=rows, labels=rows).loss

    for documents in (2, 4):
        batches = [fixed(documents, seed=i) for i in range(6)]
        attempt(
            out,
            "unsloth",
            loop,
            out,
            f"Unsloth {unsloth.__version__}, fixed 2048, {documents} documents",
            Peer,
            batches,
            kind="unsloth",
        )


def write(out: Path, folder: Path) -> None:
    """train_8b.md and .json from the rows of one or more calls; a peer that did not run is
    absent."""
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["call"] = row.get("call", "")

    def best(start: str, kind: str = "") -> float | None:
        found = [
            r
            for r in rows
            if r["name"].startswith(start) and r.get("kind") == (kind or r.get("kind"))
        ]
        return max((r["tok_s"] for r in found if "tok_s" in r), default=None)

    noted = out / "device.json"  # written on the machine that measured
    about = json.loads(noted.read_text()) if noted.exists() else device()
    fastest = max(
        (r for r in rows if r.get("kind") == "fixed"), key=lambda r: r["tok_s"], default={}
    )
    record = about | {
        "fixed_tok_s": best("fixed 2048"),
        "useful_tok_s": best("real lengths", "real"),
        "fit_tok_s": best("fit, real lengths, dropout 0.05", "fit"),
        "peak_gib": fastest.get("peak_gib"),
        "trl_fixed_tok_s": best("TRL default, fixed"),
        "trl_packed_tok_s": best("TRL packing"),
        "unsloth_tok_s": best("Unsloth"),
        "matmul_ceiling_tflops": max(
            (r["matmul_tflops"] for r in rows if "matmul_tflops" in r), default=None
        ),
    }
    record = {key: value for key, value in record.items() if value is not None}
    if scaled := {str(r["gpus"]): r["tok_s"] for r in rows if r.get("kind") == "scaling"}:
        record["scaling_tok_s"] = scaled
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_8b.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# LoRA training at the 8B's shape",
        "",
        ", ".join(f"{k} {v}" for k, v in about.items()) + ".",
        "",
    ]
    lines += [
        "| what | tokens/s | of the ceiling (4N) | peak GiB | steps, tokens/s | call |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in (r for r in rows if "tok_s" in r):
        share = 4 * products() * row["tok_s"] / 1e12 / record["matmul_ceiling_tflops"]
        steps = " ".join(map(str, row["spread"]))
        cells = [
            row["name"],
            f"{row['tok_s']:,.0f}",
            f"{share:.0%}",
            f"{row['peak_gib']:.1f}",
            steps,
            row["call"],
        ]
        lines += ["| " + " | ".join(cells) + " |"]
    lines += ["", "Other rows:", ""]
    lines += [
        f"- {json.dumps({k: v for k, v in r.items() if v != ''})}" for r in rows if "tok_s" not in r
    ]
    extra = out / "notes.md"
    (folder / "train_8b.md").write_text(
        "\n".join(lines) + "\n" + (extra.read_text() if extra.exists() else "")
    )


def device() -> dict:
    """The card, the versions and the date, for the record."""
    import torch

    names = ("torch", "transformers", "peft", "trl", "unsloth", "liger_kernel", "triton")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": card, "date": datetime.now(UTC).date().isoformat(), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--part", choices=[*PARTS, "curve"], help="run this part here, in this process"
    )
    parser.add_argument("--out", type=Path, help="folder of rows.jsonl; default: a temporary one")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy shape on a CPU, to rehearse; writes no results"
    )
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    if options.part:
        globals()[f"part_{options.part}"](out)
        return
    for part in options.parts:
        command = [sys.executable, __file__, "--part", part, "--out", str(out)] + [
            "--tiny"
        ] * options.tiny
        try:
            subprocess.run(command, timeout=PARTS[part] * 2, check=False)
        except subprocess.TimeoutExpired:
            emit(out, {"name": part, "error": f"not finished in {PARTS[part] * 2} s"})
    if not options.tiny:
        write(out, RESULTS)


if __name__ == "__main__":
    main()
