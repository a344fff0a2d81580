"""What models are asked, how their answers are graded, and what the grades say.

In the order of the work: `tasks` (items of a folder, read by `tasks_files`, or of packages),
`systems` (the one way to ask any model), `answers` (their files, graded and shown), `grade` with
its insides `extract`, `math_worker`, `code_check` and `constraints`, then `judge` for open answers,
`probe` (a model graded while it trains) and `scores` (systems on the same items).
What follows from grades: `benchmark` (win, tie, loss), `consistency` (do samples agree),
`rebenchmark` (before and after), `confidence` (is a model right as often as it is sure).

Imports `compression.runtime` (to run a GGUF), generation, packaged, endpoints, sandbox, dedup and
the ground. Public: `tasks`, `tasks_files`, `systems`, `answers`, `grade`, `judge`, `probe`,
`scores`, `benchmark`, `consistency`, `rebenchmark`, `confidence`, and `extract` for the form of an
answer; the rest are insides.
"""
