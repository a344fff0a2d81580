"""Curation beyond one machine: jobs on Ray over shards, with the rows that one machine keeps.

Read `shards` first (what a row and a chunk are), then `near_duplicates`, the job, with `tasks`,
what its workers do, and `rounds`, what the driver decides; `session` starts or joins Ray. `job` and
`curate` are the commands; `engine` is what 00 calls.

Public: `engine`, and the commands `python -m lib.cluster.job` and `python -m lib.cluster.curate`.
May import `lib.curation`, `lib.evaluation`, `lib.packaged`, `lib.dedup` and ground modules, and
nothing imports it but notebooks. Ray is the extra `cluster`, imported inside functions.
"""
