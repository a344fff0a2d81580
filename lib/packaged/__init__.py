"""Data that installed packages carry: evaluation items and training rows without a download.

Read `generated` first (families and their seeds, which keep the splits apart), then `knowledge`,
`written` and `functions`: the items. `rows` and `facts` make training rows of these families from
other seeds, `faults` and `foreign` what curation has to find, and `training_files` writes both in
the layouts of the plan's seven sources.

Public: all but `facts`, `faults` and `foreign`. May import `lib.dedup` (to know how alike two rows
are) and ground modules, never evaluation or curation, which both read from here.
"""
