"""What training costs: use of the card, memory, and hours and dollars from measured throughput."""

from __future__ import annotations

# Dense bf16 peak of a card in TFLOP/s, from the vendor's data sheets; a device that is not listed gets no MFU.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "L40S": 362.0, "RTX 4090": 165.0}


def mfu(tokens_per_second: float, parameters: int, device_name: str) -> float | None:
    """Model FLOPs utilisation of LoRA training: 4 FLOPs a parameter and token (forward, and backward to the inputs).

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
