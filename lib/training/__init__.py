"""Training: from curated rows to an adapter, and from an adapter to a merged model.

To be read in this order: `conversations` (what the loss sees), `losses` (teacher-forced loss and
perplexity), `streams` (batches without padding), `trainer` and `train` (LoRA, with exact resume),
`tune` (rows to merged checkpoint), `merge` (the merge and its audit).

Public: conversations, losses, sharpen, train, train_worker, tune, merge, throughput, figures.
Insides: checkpoints, streams, trainer, fast_lora, fast_groups, fast_kernels, fast_triton.
May import the generation room and the ground. Whoever grades answers passes a function in.
"""
