"""What training costs: use of the card, memory, and hours and dollars from measured throughput."""

from __future__ import annotations

import json

from lib.files import ROOT

MEASURED = (
    ROOT / "tests" / "bench" / "results" / "train_8b.json"
)  # written by tests/bench/train_8b.py

# Dense bf16 peak of a card in TFLOP/s, from the vendor's data sheets; a device that is not listed
# gets no MFU.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "L40S": 362.0, "RTX 4090": 165.0}


def mfu(tokens_per_second: float, parameters: int, device_name: str) -> float | None:
    """Model FLOPs utilisation of LoRA training: 4 FLOPs a parameter and token (forward, and
    backward to the inputs).

    None where the peak of the device is not known.
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
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    speed = f"{found['fit_tok_s']:,.0f} tokens/s"
    return f"{speed} on {found['device']}, {found['date']}, documents of real lengths"


def estimates(tokens: int, parameters: int, rates: dict[str, float]) -> list[dict]:
    """Hours and dollars of training an 8B on `tokens` tokens, a row for each card in `rates` (USD
    an hour).

    From the speed of `fit` with dropout on documents of real lengths; a card not measured is scaled
    by its dense bf16 peak, a guess. Empty for another size of model, or without a measurement.
    """
    if not MEASURED.exists() or not 0.9 < parameters / 8.03e9 < 1.1:
        return []
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    own = next(value for name, value in PEAK_TFLOPS.items() if name in found["device"])
    rows = []
    for card, rate in rates.items():
        hours = tokens / found["fit_tok_s"] * own / PEAK_TFLOPS[card] / 3600
        rows.append(
            {
                "card": card,
                "hours": f"{hours:.1f}",
                "USD": f"{hours * rate:.0f}",
                "speed": "measured" if card in found["device"] else "scaled by peak, not measured",
            }
        )
    return rows
