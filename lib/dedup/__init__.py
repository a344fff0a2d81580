"""Near-duplicates of texts on one machine.

Read `near_duplicates` first: `find` is the whole way. It reads texts through `textfile`, signs them
with `minhash`, looks for shared wording with `templates`, groups signatures with `bands` and
`candidates`, and lets `resolve` choose what stays, by the exact similarity of `jaccard`. The last
five are compiled by numba, which loads slowly: they are imported inside functions.

Public: `near_duplicates` (find, jaccard, cluster_sizes) and `bands` (S-curves). `lib.cluster` does
the same work in pieces with the insides; `lib.curation` and `lib.packaged` borrow `minhash`
kernels and `textfile`. Imports only ground modules.
"""
