"""Evaluation items from a folder of real files: `<data>/evals/` in the layout of the sources.

Files may be plain or gzip-compressed. A task is used if its file is there. Every reader gives items
in file order.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lib import prompts
from lib.packaged.generated import human_eval_item

# category -> task -> (patterns under evals/ of its test files, of its training files); see
# `_member` for the splits
FILES: dict[str, dict[str, tuple[str, str]]] = {
    "math": {
        "gsm8k": ("gsm8k_test.jsonl gsm8k_test_first_half.jsonl", "gsm8k_train.jsonl"),
        "math": ("math_test_sample.jsonl math_test.jsonl", "math_train.jsonl"),
    },
    "code": {
        "humaneval": ("humaneval.jsonl HumanEval.jsonl", ""),
        "mbpp_sanitized": ("mbpp_sanitized_even.json sanitized-mbpp.json",) * 2,
        "mbpp": ("mbpp_even.jsonl mbpp.jsonl",) * 2,
    },
    "reasoning": {
        "bbh": ("bbh/*.json", ""),
        "arc_challenge": (
            "arc_challenge_test_foundry.jsonl",
            "arc_challenge_train_llm_adapters.jsonl",
        ),
    },
    "knowledge": {"mmlu": ("mmlu/test/*.csv", "mmlu/dev/*.csv")},
    "instruction": {"ifeval": ("ifeval_input_data.jsonl input_data.jsonl", "")},
    "creativity": {
        "alpaca_eval": ("alpaca_eval.jsonl", ""),
        "mt_bench": ("mt_bench_question.jsonl", ""),
        "vicuna_bench": ("vicuna_bench_question.jsonl", ""),
    },
}
# the categories of MT-bench and Vicuna bench that are open
CREATIVE = {"writing", "roleplay", "counterfactual"}
# Sets that no task uses but whose text must not be trained on either: pattern, fields with question
# and answer.
OTHER_TEXTS = {
    "arena_hard": ("arena_hard_v01_question.jsonl", "prompt", ""),
    "truthfulqa": ("truthfulqa.csv", "Question", "Best Answer"),
    "metamath_backward": ("metamath_gsm8k_backward.jsonl", "question", "answer"),
}


def items(data: Path, category: str, split: str) -> Iterator[dict]:
    """Items of a category in a folder.

    Raises ValueError if the folder has no file for it in the test split.
    """
    folder = evals_folder(data)
    any_file, sanitized = False, set()
    for task, (test, train) in FILES[category].items():
        for path in _matching(folder, test if split == "test" else train):
            any_file = True
            for number, row in enumerate(_rows(path), 1):
                try:
                    item = READERS[task](row, path)
                except (KeyError, IndexError, TypeError, AttributeError, SyntaxError) as error:
                    raise ValueError(
                        f"{path}, row {number}: not the layout of {task} ({type(error).__name__}:"
                        f" {error}); restore the file as its source publishes it, or take it out of"
                        " the folder."
                    ) from error
                if task == "mbpp_sanitized":
                    sanitized.add(row["task_id"])
                if task == "mbpp" and row["task_id"] in sanitized:  # the same problem, reworded
                    continue
                if item and _member(item, split):
                    yield item
    if not any_file and split == "test":
        wanted = " or ".join(pattern.split()[0] for pattern, _ in FILES[category].values())
        raise ValueError(
            f"No {category} items in {folder}: expected {wanted} (plain or .gz); add a file or"
            f" leave {category!r} out."
        )


def _member(item: dict, split: str) -> bool:
    """Whether an item of a file belongs to the split.

    MBPP numbers its own (Austin et al. 2021: test to 510, validation to 600, then train); of other
    training files half is for probes, half for training, by content.
    """
    if item["task"].startswith("mbpp"):
        number = int(item["meta"]["task_id"])
        return split == ("test" if number <= 510 else "probe" if number <= 600 else "train")
    return split == "test" or (split == "probe") == (item["id"][0] in "01234567")


def present(data: Path, category: str) -> bool:
    """Whether the folder has a test file of the category."""
    folder = evals_folder(data)
    return any(_matching(folder, test) for test, _ in FILES[category].values())


def other_texts(data: Path) -> Iterator[tuple[str, str, str | None]]:
    """(name, question, answer) of evaluation sets in the folder that no task reads."""
    for name, (pattern, question, answer) in OTHER_TEXTS.items():
        for path in _matching(evals_folder(data), pattern):
            for number, row in enumerate(_rows(path), 1):
                if row.get(question):
                    yield (
                        f"{name}/{number}",
                        row[question],
                        (row.get(answer) or None) if answer else None,
                    )


def evals_folder(data: Path) -> Path:
    """`<data>/evals`. Raises ValueError in one sentence if it is missing."""
    if not data.is_dir():
        raise ValueError(
            f"The data folder {data} does not exist; set `data` to 'packaged' or to a folder with"
            " evals/."
        )
    folder = data / "evals"
    if not folder.is_dir():
        raise ValueError(
            f"{data} has no folder evals/; put the evaluation files there or set `data` to"
            " 'packaged'."
        )
    return folder


def _matching(folder: Path, patterns: str) -> list[Path]:
    """Files of the first pattern that has any, plain or gzip-compressed, in name order."""
    for pattern in patterns.split():
        files = {
            re.sub(r"\.gz$", "", path.name): path for path in sorted(folder.glob(pattern + ".gz"))
        }
        files |= {path.name: path for path in sorted(folder.glob(pattern))}
        if files:
            return [files[name] for name in sorted(files)]
    return []


def _rows(path: Path) -> Iterator:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    try:
        if kind == "jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
        elif kind == "json":
            whole = json.loads(text)
            yield from whole["examples"] if isinstance(whole, dict) else whole
        elif "mmlu" in path.parts:  # no header
            yield from csv.reader(io.StringIO(text, newline=""))
        else:
            yield from csv.DictReader(io.StringIO(text, newline=""))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not {kind.upper()} ({error}); restore it or take it out."
        ) from error


# -- one reader a task: (row, path) -> item or None --


def _gsm8k(row: dict, path: Path) -> dict:
    return prompts.item(
        "gsm8k", "math", row["question"], row["answer"], "math", licence="MIT (grade-school-math)"
    )


def _math(row: dict, path: Path) -> dict:
    meta = {"level": row.get("level"), "subtask": row.get("type")}
    return prompts.item(
        "math",
        "math",
        row["problem"],
        row["solution"],
        "math",
        licence="MIT (hendrycks/math)",
        meta=meta,
    )


def _humaneval(row: dict, path: Path) -> dict:
    return human_eval_item(row, "MIT (human-eval)")


def _mbpp(row: dict, path: Path) -> dict:
    tests = [test.replace("\r\n", "\n") for test in row["test_list"]]
    meta = {
        "task_id": row["task_id"],
        "tests": tests,
        "setup": row.get("test_setup_code", ""),
        "imports": row.get("test_imports", []),
        "style": "mbpp",
    }
    task = "mbpp_sanitized" if "source_file" in row else "mbpp"
    question, gold = row.get("prompt") or row["text"], row["code"].replace("\r\n", "\n")
    return prompts.item(
        task,
        "code",
        question,
        gold,
        "code",
        example=tests[0],
        meta=meta,
        licence="CC BY 4.0 (mbpp)",
    )


def _bbh(row: dict, path: Path) -> dict:
    name, gold = path.name.split(".")[0], row["target"].strip()
    letter = re.fullmatch(r"\(([A-Z])\)", gold)
    if letter:
        options = re.findall(r"^\([A-Z]\) (.*)$", row["input"], re.MULTILINE)
        question = re.split(r"\nOptions:", row["input"])[0]
        return prompts.item(
            "bbh",
            "reasoning",
            question,
            letter[1],
            "choice",
            options=options,
            meta={"subtask": name},
            licence="MIT (BIG-Bench-Hard)",
        )
    checker = "math" if re.fullmatch(r"-?\d+", gold) else "exact"
    question = re.sub(r"\nOptions:\n- (.*)\n- (.*)$", r" (\1 or \2)", row["input"])
    return prompts.item(
        "bbh",
        "reasoning",
        question,
        gold,
        checker,
        meta={"subtask": name},
        licence="MIT (BIG-Bench-Hard)",
    )


def _arc(row: dict, path: Path) -> dict:
    if "query" in row:
        question, options, gold = row["query"], row["choices"], prompts.LETTERS[row["gold"]]
        question = re.sub(r"^Question: |\nAnswer:?$", "", question.strip())
    else:  # alpaca-like layout: options inside the instruction, `answer` is answerN
        question, _, listed = row["instruction"].partition("\n\nAnswer1:")
        question = question.removeprefix(
            "Please choose the correct answer to the question:"
        ).strip()
        options = re.split(r"\s*Answer\d+:", listed.split("\n\nAnswer format")[0])
        gold = prompts.LETTERS[int(re.sub(r"\D", "", row["answer"])) - 1]
    options = [option.strip() for option in options]
    return prompts.item(
        "arc_challenge",
        "reasoning",
        question,
        gold,
        "choice",
        options=options,
        licence="CC BY-SA 4.0 (ARC)",
    )


def _mmlu(row: list[str], path: Path) -> dict:
    question, *options, gold = row
    if len(options) != 4 or gold not in ("A", "B", "C", "D"):
        raise KeyError("question, four options and a letter expected")
    subject = re.sub(r"_(test|dev|val)?\.csv.*$", "", path.name)
    return prompts.item(
        "mmlu",
        "knowledge",
        question,
        gold,
        "choice",
        options=options,
        meta={"subtask": subject},
        licence="MIT (hendrycks/test)",
    )


def _ifeval(row: dict, path: Path) -> dict:
    kwargs = [
        {key: value for key, value in options.items() if value is not None}
        for options in row["kwargs"]
    ]
    meta = {"instruction_id_list": row["instruction_id_list"], "kwargs": kwargs, "key": row["key"]}
    return prompts.item(
        "ifeval",
        "instruction",
        row["prompt"],
        None,
        "constraints",
        meta=meta,
        licence="Apache-2.0 (instruction_following_eval)",
    )


def _alpaca_eval(row: dict, path: Path) -> dict:
    return prompts.item(
        "alpaca_eval",
        "creativity",
        row["instruction"],
        None,
        "open",
        meta={"reference": row.get("output"), "subtask": row.get("dataset")},
        licence="CC BY-NC 4.0 (alpaca_eval)",
    )


def _bench(row: dict, path: Path) -> dict | None:
    if row["category"] not in CREATIVE:
        return None
    task = "mt_bench" if path.name.startswith("mt_") else "vicuna_bench"
    return prompts.item(
        task,
        "creativity",
        row["turns"][0],
        None,
        "open",
        licence="Apache-2.0 (FastChat)",
        meta={"subtask": row["category"]},
    )


READERS: dict[str, Callable] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "mbpp_sanitized": _mbpp,
    "bbh": _bbh,
    "arc_challenge": _arc,
    "mmlu": _mmlu,
    "ifeval": _ifeval,
    "alpaca_eval": _alpaca_eval,
    "mt_bench": _bench,
    "vicuna_bench": _bench,
}
