"""What the teacher's work will cost, before a cent is spent, and what an accepted example has cost."""

from __future__ import annotations

import json

BYTES_A_TOKEN = 4.0  # of English text and JSON under the usual tokenizers; a bound is one token a byte
CHAT_TOKENS = 8  # of a message's own wrapping


def price_table(names: list[str], prices_in: list[float], prices_out: list[float]) -> dict[str, tuple[float, float]]:
    """{model: (USD a million tokens in, out)} of three lists of equal length; ValueError otherwise."""
    if not len(names) == len(prices_in) == len(prices_out):
        counts = f"{len(names)} models, {len(prices_in)} prices in and {len(prices_out)} out"
        raise ValueError(f"the price table has {counts}; give one of each")
    return {name: pair for name, *pair in zip(names, map(float, prices_in), map(float, prices_out), strict=True)}


def tokens_in(request: dict) -> float:
    """Estimated prompt tokens of a request."""
    text = json.dumps(request["messages"], ensure_ascii=False)
    return len(text.encode()) / BYTES_A_TOKEN + CHAT_TOKENS * len(request["messages"])


def dry_run(plans: list[dict], *, examples: int, surplus: float, samples: int, question_tokens: float,
            example_tokens: float, solution_tokens: float, write_max: int, solve_max: int, priced: tuple[float, float],
            discount: float) -> list[dict]:
    """The whole job, step by step: requests, tokens in and out, USD expected, and the most they could cost.

    plans: of `write_requests`, all or a sample of them; scaled to `examples`. example_tokens and solution_tokens: out,
    expected, any reasoning that is billed included. The bound takes every byte of a prompt for a token and every
    answer at its limit, write_max or solve_max. discount: 1 for chat, less for batches. Last row: the sum.
    """
    wanted = examples * surplus
    scale = wanted / max(1, sum(plan["wanted"] for plan in plans))
    steps = [
        ("write examples", len(plans) * scale, sum(tokens_in(plan["request"]) for plan in plans) * scale,
         wanted * example_tokens, write_max),
        ("solve them again", wanted * samples, wanted * samples * question_tokens, wanted * samples * solution_tokens,
         solve_max),
    ]
    rows = [{"step": name, "requests": round(requests), "tokens in": round(into), "tokens out": round(out),
             "USD": (into * priced[0] + out * priced[1]) / 1e6 * discount,
             "USD at most": (into * BYTES_A_TOKEN * priced[0] + requests * most * priced[1]) / 1e6 * discount}
            for name, requests, into, out, most in steps]
    return [*rows, {"step": "all", **{key: sum(row[key] for row in rows) for key in list(rows[0])[1:]}}]


def for_reader(rows: list[dict]) -> list[dict]:
    """Rows of `dry_run` with numbers as text."""
    return [{key: f"{value:,.2f}" if key.startswith("USD") else f"{value:,}" if isinstance(value, int) else value
             for key, value in row.items()} for row in rows]


def per_example(ledger: list[dict], accepted: int) -> dict:
    """Tokens and USD of a role's ledger, all and for each accepted example; what was not bought is absent."""
    if not ledger:
        return {}
    total = {key: sum(row[key] for row in ledger) for key in ("attempts", "tokens_in", "tokens_out", "usd")}
    if not accepted:
        return total
    return total | {f"{key}_per_example": total[key] / accepted for key in ("tokens_in", "tokens_out", "usd")}
