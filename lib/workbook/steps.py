"""The pipeline on one page: the steps in the order of a run, and what each of them reads.

A step is a notebook with its parameters. A notebook that runs several times is several steps, each
named <notebook>.<variant>: Step("30_modifier.code", reads=[...], parameter="domain") runs
notebooks/30_modifier.ipynb with domain = "code". The notebook declares `domain` and passes it on by
run.start("30_modifier", globals(), variant=domain), so plain papermill needs -p domain code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.params import ParameterError, nearest, notebook_of

EVERYTHING = ("*",)  # reads every step before it


@dataclass(frozen=True)
class Step:
    """One line of the page.

    reads: steps whose artifacts or metrics it takes; a notebook's name stands for all its variants
    that run. parameter: the notebook's parameter that takes the variant. judges: it runs with
    whatever is there, and shows what is missing as not measured.
    """

    name: str
    reads: Sequence[str] = ()
    parameter: str = ""
    judges: bool = False

    @property
    def notebook(self) -> str:
        """30_modifier of 30_modifier.code."""
        return notebook_of(self.name)

    @property
    def variant(self) -> str:
        """code of 30_modifier.code; empty where the notebook runs once."""
        return self.name.partition(".")[2]


STEPS = (
    # 1A: from raw rows to a merged model, and how it stands against the base
    Step("00_curate"),
    Step("10_train_base", reads=["00_curate"]),
    Step("11_merge", reads=["00_curate", "10_train_base"]),
    Step("12_benchmark", reads=["11_merge"]),
    # 1B: is it consistent, and can it be made so
    Step("13_consistency", reads=["11_merge", "12_benchmark"]),
    Step("14_self_distill", reads=["00_curate", "11_merge"]),
    Step("15_train_consistent", reads=["00_curate", "11_merge", "14_self_distill"]),
    Step(
        "16_rebenchmark",
        reads=["11_merge", "12_benchmark", "13_consistency", "15_train_consistent"],
    ),
    # 1C: what it fails at, and what a teacher repairs
    Step("17_failures", reads=["00_curate", "15_train_consistent"]),
    Step(
        "18_distill",
        reads=["00_curate", "11_merge", "12_benchmark", "14_self_distill"]
        + ["15_train_consistent", "16_rebenchmark", "17_failures"],
    ),
    # 2: what an 8B can weigh; compression of the base, recovery, calibrated confidence
    Step("19_plan_bytes"),
    Step("20_prune", reads=["00_curate", "11_merge", "15_train_consistent", "18_distill"]),
    Step(
        "21_quantize",
        reads=["00_curate", "11_merge", "15_train_consistent", "18_distill", "20_prune"],
    ),
    Step(
        "22_gguf",
        reads=["00_curate", "11_merge", "15_train_consistent", "18_distill"]
        + ["20_prune", "21_quantize"],
    ),
    Step("23_pack", reads=["22_gguf"]),
    Step("24_recover", reads=["00_curate", "22_gguf"]),
    Step("25_calibrate", reads=["22_gguf", "24_recover"]),
    # 5: the verdict
    Step("50_validate", reads=EVERYTHING, judges=True),
)


def of_run(page: Sequence[Step] = STEPS, variants: list[str] | None = None) -> list[Step]:
    """The steps of a run: those that are no variant, and the `variants` named (None: all).

    In the result `reads` holds names of steps alone. Raises ParameterError for a name that is no
    variant on the page.
    """
    known = [step.name for step in page if step.variant]
    for name in variants or []:
        if name not in known:
            raise ParameterError(f"variants: there is no step {name!r}; {nearest(name, known)}")
    steps: list[Step] = []
    for step in page:
        if not step.variant or variants is None or step.name in variants:
            reads = [s.name for s in steps if _is_read(s, step.reads)]
            steps.append(Step(step.name, tuple(reads), step.parameter, step.judges))
    return steps


def _is_read(step: Step, reads: Sequence[str]) -> bool:
    return tuple(reads) == EVERYTHING or step.name in reads or step.notebook in reads


def reads(name: str, page: Sequence[Step] = STEPS) -> list[str]:
    """The steps that step `name` reads, all variants included."""
    return next(list(step.reads) for step in of_run(page) if step.name == name)


def steps_named(text: str, names: list[str]) -> list[str]:
    """The step that `text` names in full or by an unambiguous beginning: 12, 30_modifier.code, 30.

    A notebook's name means all its variants. Raises ParameterError when several notebooks are
    meant, or none.
    """
    text = Path(text).name.removesuffix(".ipynb")
    exact = [name for name in names if text in (name, notebook_of(name))]
    hits = exact or [name for name in names if name.startswith(text)]
    meant = hits if "." in text else {notebook_of(name) for name in hits}
    if len(meant) != 1:
        raise ParameterError(f"{text!r} names {len(hits)} steps; {nearest(text, hits or names)}")
    return hits


def select(
    names: list[str], first: str | None, last: str | None, only: list[str] | None
) -> list[str]:
    """The steps to run, in order. Raises ParameterError for an unknown or reversed choice."""
    if only:
        wanted = {name for text in only for name in steps_named(text, names)}
        return [name for name in names if name in wanted]
    start = 0 if first is None else names.index(steps_named(first, names)[0])
    stop = len(names) - 1 if last is None else names.index(steps_named(last, names)[-1])
    if start > stop:
        raise ParameterError(f"--from {names[start]} comes after --to {names[stop]}")
    return names[start : stop + 1]
