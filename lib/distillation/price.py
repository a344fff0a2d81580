"""What the teacher's work will cost, before a cent is spent, and what an example has cost."""

from __future__ import annotations

import json

from lib.distillation import teacher

BYTES_A_TOKEN = 4.0  # English text and JSON, usual tokenizers; a bound is one token a byte
CHAT_TOKENS = 8  # of a message's own wrapping
# expected of each; with little reasoning, which is billed too
QUESTION_TOKENS, EXAMPLE_TOKENS, SOLUTION_TOKENS = 150, 300, 300


def price_table(lines: list[str]) -> dict[str, tuple[float, float]]:
    """{model: (USD a million tokens in, out)} of lines "model in out"; ValueError names a fault."""
    table = {}
    for line in lines:
        parts = line.split()
        try:
            name, into, out = parts[0], float(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            raise ValueError(
                f"price {line!r}: write 'model USD-in USD-out', each for a million tokens"
            ) from None
        if len(parts) != 3 or min(into, out) < 0:
            raise ValueError(f"price {line!r}: write three parts, no price below 0")
        table[name] = (into, out)
    return table


def priced_model(model: str, table: dict[str, tuple[float, float]]) -> str:
    """The teacher whose work is priced: `model`, or the first of the table where it is empty.

    Raises ValueError when the table has no price for it.
    """
    chosen = model or next(iter(table))
    if chosen not in table:
        raise ValueError(
            f"no price for teacher {chosen!r}: add 'model USD-in USD-out' to prices; 0 if it costs"
            " nothing"
        )
    return chosen


def tokens_in(request: dict) -> float:
    """Estimated prompt tokens of a request."""
    text = json.dumps(request["messages"], ensure_ascii=False)
    return len(text.encode()) / BYTES_A_TOKEN + CHAT_TOKENS * len(request["messages"])


def dry_run(
    plans: list[dict], priced: tuple[float, float], *, examples: int, samples: int, discount: float
) -> list[dict]:
    """The whole job, step by step: requests, tokens, USD expected, and the most they could cost.

    plans: of `teacher.write_requests`, all of them or a sample; scaled to `examples` and their
    surplus. The bound takes every byte of a prompt for a token and every answer at its limit.
    discount: 1 for chat, less for batches. Last row: the sum.
    """
    wanted = examples * teacher.SURPLUS
    scale = wanted / max(1, sum(plan["wanted"] for plan in plans))
    steps = [
        (
            "write examples",
            len(plans) * scale,
            sum(tokens_in(plan["request"]) for plan in plans) * scale,
            wanted * EXAMPLE_TOKENS,
            max((plan["request"]["max_tokens"] for plan in plans), default=0),
        ),
        (
            "solve them again",
            wanted * samples,
            wanted * samples * QUESTION_TOKENS,
            wanted * samples * SOLUTION_TOKENS,
            teacher.SOLVE_TOKENS,
        ),
    ]
    rows = [
        {
            "step": name,
            "requests": round(requests),
            "tokens in": round(into),
            "tokens out": round(out),
            "USD": (into * priced[0] + out * priced[1]) / 1e6 * discount,
            "USD at most": (
                (into * BYTES_A_TOKEN * priced[0] + requests * most * priced[1]) / 1e6 * discount
            ),
        }
        for name, requests, into, out, most in steps
    ]
    total = {key: sum(row[key] for row in rows) for key in list(rows[0])[1:]}
    return [*rows, {"step": "all", **total}]


def require_budget(expected: float, budget: float) -> None:
    """Raise ValueError when a job is expected to cost more than its budget, both in USD."""
    if expected > budget:
        raise ValueError(
            f"{expected:.2f} USD expected, budget {budget:.2f}: raise it or ask for fewer examples"
        )


def by_model(plans: list[dict], table: dict, sizes: list[int], **options) -> list[dict]:
    """A row a model: USD expected for each number of examples. options: of `dry_run`."""
    return [
        {"model": model}
        | {
            f"{count:,} examples, USD": f"{_usd(plans, pair, count, options):,.2f}"
            for count in sizes
        }
        for model, pair in table.items()
    ]


def _usd(plans: list[dict], pair: tuple[float, float], examples: int, options: dict) -> float:
    return dry_run(plans, pair, examples=examples, **options)[-1]["USD"]


def for_reader(rows: list[dict]) -> list[dict]:
    """Rows of `dry_run` with numbers as text."""
    return [{key: _readable(key, value) for key, value in row.items()} for row in rows]


def _readable(key: str, value) -> str:
    if key.startswith("USD"):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def sentence(bought: dict) -> str:
    """What `per_example` returns, for a reader."""
    if not bought:
        return "Nothing was bought."
    example = ""
    if "usd_per_example" in bought:
        example = (
            f"An example used has cost {bought['usd_per_example']:.5f} USD,"
            f" {bought['tokens_in_per_example']:,.0f} tokens in and"
            f" {bought['tokens_out_per_example']:,.0f} out; "
        )
    return f"{example}all of it {bought['usd']:.4f} USD in {bought['attempts']:,} attempts."


def per_example(ledger: list[dict], accepted: int) -> dict:
    """Tokens and USD of ledger rows, all and for each accepted example; empty: nothing bought."""
    if not ledger:
        return {}
    total = {
        key: sum(row[key] for row in ledger)
        for key in ("attempts", "tokens_in", "tokens_out", "usd")
    }
    if not accepted:
        return total
    return total | {
        f"{key}_per_example": total[key] / accepted for key in ("tokens_in", "tokens_out", "usd")
    }
