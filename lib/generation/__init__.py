"""Generation: text, and vectors of text, from a model in this process.

To be read in this order: `generate` (samples a prompt, stored and reproducible), `decoding` (the
batch while it is decoded), `decoding_graph` (the same on a CUDA device), `caches` (their key/value
caches), `embed` (texts as vectors).

Public: generate, embed. Insides: decoding, decoding_graph, caches. May import the ground alone.
Who wants answers to evaluation items asks through `lib.evaluation.systems`.
"""
