"""From raw files to training splits: what 00 does to a row.

Read `curate` first: `ingest`, `Stage`, `deduplicate`. On the way stand `sources` and `readers` (raw
rows), `normalise` (one shape), `filters` (fit, domain, difficulty), `language` (English),
`decontaminate` with `word_runs` (no evaluation item), `parallel` (processes) and, last, `splits`.
`audit` and `account` check and show what came out.

Public: `curate`, `sources`, `splits`, `audit`, `account`, `decontaminate`, `normalise`. May import
`lib.packaged`, `lib.dedup` and ground modules; what it must know of evaluation is passed in.
"""
