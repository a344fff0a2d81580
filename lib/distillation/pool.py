"""The failure pool: checkable questions of training splits, none that a reported number rests on.

Packaged sources: reasoning-gym families from seeds of their own, knowledge about the training
subjects, functions with examples in their docstrings (each example becomes a test). From a folder:
the training files under evals/. From 00: rows of train.jsonl that end in the sentence the graders
look for. A question belongs to one of two parts by the hash of its content: `pool` is asked,
`teacher` is where new examples come from when gold answers stand in for one.
"""

from __future__ import annotations

import ast
import doctest
import random
import re
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

from lib import domains, prompts
from lib.evaluation import extract, grade, tasks, tasks_files
from lib.files import content_hash, from_root, read_jsonl
from lib.packaged import functions as packaged_code
from lib.packaged import generated as generated_items
from lib.packaged import knowledge as knowledge_items
from lib.packaged import rows as packaged_rows

# beside those of train, probe and test in lib.packaged.generated
SEEDS = {"pool": 4_000_000, "teacher": 5_000_000}
TEACHER_SHARE = 40  # per cent of the questions of a finite source that are kept for the teacher
SOURCES = domains.POOL  # questions each gives in its turn
ROW = 10**9  # more than any source holds


def part_of(item: dict) -> str:
    """`pool` or `teacher`, by the content of the question."""
    place = int(content_hash("part of the pool", item["meta"]["question"])[:8], 16) % 100
    return "teacher" if place < TEACHER_SHARE else "pool"


def stream(
    sources: list[str],
    part: str,
    *,
    data: str = tasks.PACKAGED,
    curated: Path | None = None,
    forbidden: frozenset[str] = frozenset(),
) -> Iterator[dict]:
    """Items of a part, sources in turn, without repeats and without what `forbidden` holds.

    part: "pool" or "teacher". data: "packaged", or a folder with evals/, for "files". curated:
    train.jsonl of 00, for "curated". forbidden: content hashes of questions and of whole prompts
    (`forbidden_contents`). An item is one of `lib.prompts.item` whose meta may also hold "worked",
    a gold answer written out. Ends when every source is exhausted; generated items are without end
    for practical sizes. Raises ValueError for an unknown source, or one whose place is not given.
    """
    if unknown := set(sources) - set(SOURCES):
        raise ValueError(
            f"unknown source {sorted(unknown)[0]!r} of the pool; known: {', '.join(SOURCES)}"
        )
    if "files" in sources and data == tasks.PACKAGED:
        raise ValueError(
            "the source 'files' needs `data` to be a folder with evals/; leave it out or name one"
        )
    makers = {
        "generated": lambda: generated(part),
        "knowledge": lambda: _mine(knowledge(), part),
        "code": lambda: _mine(functions(), part),
        "curated": lambda: _mine(from_rows(curated), part),
        "files": lambda: _mine(from_files(from_root(data)), part),
    }
    seen = set(forbidden)
    running = {name: makers[name]() for name in sources}
    while running:
        for name, items in list(running.items()):
            turn = list(islice(items, SOURCES[name]))
            if not turn:
                del running[name]
            for item in turn:
                hashes = contents(item)
                if not seen & hashes:
                    seen |= hashes
                    yield item


def contents(item: dict) -> set[str]:
    """The hashes under which an item is recognised: question, question with options, prompt."""
    return {item["id"], content_hash(item["meta"]["question"]), content_hash(item["prompt"])}


def forbidden_contents(data: str, curated: Path, evaluation: list[tuple]) -> frozenset[str]:
    """Hashes of every evaluation and probe question, and of what 00 keeps apart.

    That is for validation, calibration and thresholds. data: "packaged" or a folder, as text;
    evaluation: (name, question, answer) of `tasks.evaluation_texts(data)`.
    """
    hashes = {content_hash(question) for _, question, _ in evaluation}
    if data == tasks.PACKAGED:
        probes = chain(
            *(generated_items.generated(name, "probe") for name in ("math", "reasoning")),
            knowledge_items.items("probe"),
        )
    else:
        folder = from_root(data)
        probes = chain(*(tasks_files.items(folder, name, "probe") for name in tasks.CATEGORIES))
    for item in probes:
        hashes |= contents(item)
    for name in ("validation", "calibration", "threshold"):
        path = curated / f"{name}.jsonl"
        if path.exists():
            hashes |= {content_hash(row["instruction"]) for row in read_jsonl(path)}
    return frozenset(hashes)


def _mine(items: Iterator[dict], part: str) -> Iterator[dict]:
    return (item for item in items if part_of(item) == part)


def generated(part: str, size: int = ROW) -> Iterator[dict]:
    """reasoning-gym items, family after family in turn, from the seeds of a part."""
    import reasoning_gym

    sets = []
    for category in ("math", "reasoning"):
        table = generated_items.MATH if category == "math" else generated_items.REASONING
        for name, (checker, config) in table.items():
            dataset = reasoning_gym.create_dataset(name, seed=SEEDS[part], size=size, **config)
            sets.append((category, name, checker, config, dataset))
    for index in range(size):
        for category, name, checker, config, dataset in sets:
            example = dataset[index]
            closing = packaged_rows.final(str(example["answer"]))
            shown = [packaged_rows.working(name, example), closing]
            worked = "\n".join(part for part in shown if part)
            item = generated_items.gym_item
            yield item(category, name, checker, config, index, example, worked=worked)


def knowledge() -> Iterator[dict]:
    """Choices about the training subjects, asked as in 00, and backwards as nowhere else."""
    backwards = {
        "capitals": "Which of these countries has the capital {0}?",
        "symbols": "Which element has the chemical symbol {0}?",
        "numbers": "Which element has the atomic number {0}?",
    }
    facts = [
        fact for fact in knowledge_items.facts() if knowledge_items.split_of(fact[0]) == "train"
    ]
    for item in knowledge_items.items("train"):
        item["meta"]["worked"] = (
            f"{item['meta']['statement']} {prompts.ANSWER_MARK} {item['gold']}."
        )
        yield item
    for subject, task, _, answer, statement in facts:
        if task not in backwards:
            continue
        others = sorted({other[0] for other in facts if other[1] == task and other[0] != subject})
        rng = random.Random(content_hash("backwards", task, subject))
        options = [subject, *rng.sample(others, 3)]
        rng.shuffle(options)
        letter = prompts.LETTERS[options.index(subject)]
        yield prompts.item(
            f"{task}_backwards",
            "knowledge",
            backwards[task].format(answer),
            letter,
            "choice",
            options=options,
            licence=knowledge_items.LICENCE,
            meta={
                "subject": subject,
                "statement": statement,
                "worked": f"{statement} {prompts.ANSWER_MARK} {letter}.",
            },
        )


def functions() -> Iterator[dict]:
    """Functions whose docstrings hold examples; a value that one shows is a test of the mbpp kind.

    Only examples that call the function itself and show a literal count, and only functions that
    pass their own.
    """
    for function in packaged_code.all_functions():
        tests = doctests(function["doc"], function["name"])
        if not tests:
            continue
        first = function["doc"].split(">>>")[0].strip().split("\n\n")[0]
        question = (
            f"Write a Python function with this first line.\n\n{function['signature']}\n\n{first}"
        )
        code = f"```python\n{function['code']}\n```"
        item = prompts.item(
            "docstrings",
            "code",
            question,
            function["code"],
            "code",
            example=tests[0],
            licence=function["licence"],
            meta={"tests": tests, "style": "mbpp", "worked": code, "subtask": function["module"]},
        )
        if grade.grade(item, code)["correct"]:
            yield item


def doctests(doc: str, name: str) -> list[str]:
    """`assert name(...) == value` for each example in a docstring that calls `name`."""
    try:
        examples = doctest.DocTestParser().get_examples(doc)
    except ValueError:
        return []
    tests = []
    for example in examples:
        if "#" in example.source or "\n" in example.want.strip():
            continue  # a directive, or a value cut in lines
        try:
            call = ast.parse(example.source.strip(), mode="eval").body
            ast.literal_eval(example.want.strip())
        except (SyntaxError, ValueError):
            continue
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name:
            tests.append(f"assert {example.source.strip()} == {example.want.strip()}")
    return tests


def from_rows(path: Path | None) -> Iterator[dict]:
    """Curated mathematics rows without history that end in "The answer is ...", as MetaMathQA's."""
    if path is None:
        raise ValueError("the source 'curated' needs train.jsonl of 00_curate")
    for row in read_jsonl(path):
        gold = extract.marked(row["response"].strip().rsplit("\n", 1)[-1])
        if row.get("domain") != "math" or row.get("history") or row.get("system") or not gold:
            continue
        if extract.number(extract.expression(gold)) is None:
            continue
        question = row["instruction"].split(f"\n\n{prompts.FINISH}")[0]
        yield prompts.item(
            "curated_math",
            "math",
            question,
            extract.expression(gold),
            "math",
            licence=row["licence"],
            meta={"worked": row["response"], "subtask": row["source"]},
        )


def from_files(data: Path) -> Iterator[dict]:
    """Training splits of published sets in <data>/evals/ that are there, categories in turn."""
    categories = [tasks_files.items(data, name, "train") for name in ("math", "code", "reasoning")]
    for item in chain.from_iterable(filter(None, items) for items in zip_longest(*categories)):
        worked = item["gold"]
        if item["checker"] == "code":
            worked = f"```python\n{item['gold']}\n```"
        elif item["checker"] == "choice":
            worked = f"{prompts.ANSWER_MARK} {item['gold']}."
        elif "####" in worked:  # GSM8K: its calculator marks and its last line are put in our words
            text, _, last = worked.rpartition("####")
            worked = f"{_unmarked(text)}\n{prompts.ANSWER_MARK} {last.strip()}."
        elif extract.boxed(worked):
            worked = f"{worked.strip()}\n{prompts.ANSWER_MARK} {extract.boxed(worked)[0].strip()}."
        item["meta"]["worked"] = worked
        yield item


def _unmarked(text: str) -> str:
    return re.sub(r"<<[^>]*>>", "", text).strip()
