"""How a run is executed, judged and shown. Notebooks see it through `lib.run`.

Read in this order: `steps` (the pipeline on one page), `pipeline` (runs it: what is fresh, what
failed, what goes on), `freshness` with `definitions` (what a result depends on), `state` (what is
done), `notebook` and `progress` (one execution and its live line); then `gates` (thresholds and
verdicts), `provenance` (where a number comes from) and `record` (what the metrics of a run add up
to); last what a reader sees: `publish` draws `summary` as a `page`, `transcripts`, `gate_figure`.

It may import every other room; only notebooks, `lib.run` and `lib.report` import it. Public for
notebooks: `gates`, `record`, `steps`, `leakage`, `summary`, `gate_figure`.
"""
