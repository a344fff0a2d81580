"""What training costs: use of the card, memory, and hours and dollars from measured throughput."""

from __future__ import annotations

# Speed of `train.fit` on the 8B's shape, dropout on, documents of real lengths: fit_tok_s of
# tests/bench/results/train_8b.json, which tests/bench/train_8b.py writes.
MEASURED = {"device": "NVIDIA H100 80GB HBM3", "date": "2026-11-26", "tokens_per_second": 16368.0}
SIZE = 8.03e9  # parameters of that shape

# Dense bf16 peak of a card in TFLOP/s, from the vendor's data sheets; a device that is not listed
# gets no MFU.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "L40S": 362.0, "RTX 4090": 165.0}


def mfu(tokens_per_second: float, parameters: int, device_name: str) -> float | None:
    """Model FLOPs utilisation of LoRA training; None where the peak of the device is not known.

    4 FLOPs a parameter and token: forward, and backward to the inputs.
    """
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in device_name), None)
    return 4 * parameters * tokens_per_second / (peak * 1e12) if peak else None


def peak_memory_bytes() -> int:
    """Peak memory of the device (CUDA) or of this process (CPU), bytes."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_on() -> str:
    """Where and when the speed behind `estimates` was measured, as a phrase."""
    speed = f"{MEASURED['tokens_per_second']:,.0f} tokens/s"
    return f"{speed} on {MEASURED['device']}, {MEASURED['date']}, documents of real lengths"


def estimates(tokens: int, parameters: int, rates: dict[str, float]) -> list[dict]:
    """Hours and dollars of training an 8B on `tokens` tokens, a row for each card in `rates`.

    rates: {card: USD an hour}. A card not measured is scaled by its dense bf16 peak, a guess.
    Empty for another size of model.
    """
    if not 0.9 < parameters / SIZE < 1.1:
        return []
    peak = next(value for name, value in PEAK_TFLOPS.items() if name in MEASURED["device"])
    rows = []
    for card, rate in rates.items():
        seconds = tokens / MEASURED["tokens_per_second"] * peak / PEAK_TFLOPS[card]
        measured = card in MEASURED["device"]
        rows.append(
            {
                "card": card,
                "hours": f"{seconds / 3600:.1f}",
                "USD": f"{seconds / 3600 * rate:.0f}",
                "speed": "measured" if measured else "scaled by peak, not measured",
            }
        )
    return rows
