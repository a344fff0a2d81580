"""Compression: sizes on disk and their bound, plans for a budget, GGUF, packing, recovery,
calibration."""
