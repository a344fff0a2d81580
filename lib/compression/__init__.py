"""Compression: fewer bytes on disk for a trained Llama, and what each of them costs in answers.

Read `sizes` (the ledger of bytes) and `planner` (which routes reach a budget) first; then the
routes: `calibration` (the text that decides), `prune`, `structured` and `grid` (20), `quantize`
(21), `to_gguf`, `ladder` and `runtime` (22), `pack` and `sparse_gguf` (23), `recover` (24).

It may import training, generation and what lies below them, never evaluation: who grades answers
passes in a function that asks (`measure.checkpoint`).

Public: calibration, from_gguf, gguf_types, grid, ladder, measure, pack, planner, prune, quantize,
recover, runtime, sizes, sparse_gguf, structured, to_gguf. The rest are insides: llama.cpp through
ctypes (llamacpp), decoding (sampling), llmcompressor without its noise (oneshot).
"""
