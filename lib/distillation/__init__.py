"""What a model learns from its own answers, and from a teacher at what it fails at.

Phase 1B (14): `training_prompts` chooses prompts that no test knows, `self_distill` the text to
learn of each. Phase 1C (17, 18), in this order: `pool` streams questions, `failures` lets a model
answer them and sets a part aside, `failure_clusters` finds kinds of failure; `teacher` is what a
teacher is asked, `price` what that costs, `accept` which of its examples are kept, `gain` what
learning them has changed.

All of these are public, to notebooks. May import `lib.curation`, `lib.evaluation`,
`lib.compression`, `lib.training`, `lib.generation`, `lib.packaged`, `lib.endpoints`, `lib.dedup`,
`lib.sandbox` and the ground; never `lib.workbook`.
"""
