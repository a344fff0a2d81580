"""How evaluation items are worded, in one place: every model sees the same prompt.

The answer format asked for here is the one that `lib.evaluation.grade` looks for first (its
extractors named `marked`).
"""

from __future__ import annotations

from lib.files import content_hash

ANSWER_MARK = "The answer is"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Measured on SmolLM2-135M with 120 probe items: this sentence is obeyed in 91 % of the answers;
# "End with: The answer is X." in a third (the model copies the X), and quotation marks around the
# mark are echoed.
FINISH = "Finish with the sentence: The answer is ..."
QUESTION = "{question}\n\n" + FINISH
CHOICE = "{question}\n\n{options}\n\nAnswer with the letter. " + FINISH
COMPLETE = (
    "Complete this Python function. Answer with the whole function in one code"
    " block.\n\n```python\n{question}\n```"
)
WRITE = (
    "{question}\n\nWrite the Python function. It must pass tests like this one:\n\n"
    "```python\n{example}\n```\n\nAnswer with the whole function in one code block."
)


def options_block(options: list[str]) -> str:
    """Options as `A. first` lines."""
    return "\n".join(f"{LETTERS[index]}. {option}" for index, option in enumerate(options))


def render(checker: str, question: str, options: list[str] | None = None, example: str = "") -> str:
    """The user message for a question.

    `options` for choices, `example` (one test) for functions to be written.
    """
    if checker == "code":
        template = WRITE if example else COMPLETE
        return template.format(question=question.rstrip(), example=example.strip())
    if checker == "choice" and options:
        return CHOICE.format(question=question.strip(), options=options_block(options))
    if checker in ("math", "choice", "exact", "reasoning_gym"):
        return QUESTION.format(question=question.strip())
    return question.strip()  # open prompts and verifiable constraints are already whole requests


def item(
    task: str,
    category: str,
    question: str,
    gold: str | None,
    checker: str,
    *,
    licence: str,
    options: list[str] | None = None,
    example: str = "",
    meta: dict | None = None,
) -> dict:
    """One evaluation item. The id hashes the question and its options, not the wording around them.

    The bare question stays in `meta["question"]`: decontamination compares it with training rows.
    """
    details = {"question": question.strip(), **(meta or {})}
    if options:
        details["options"] = list(options)
    return {
        "id": content_hash(question, *(options or [])),
        "task": task,
        "category": category,
        "prompt": render(checker, question, options, example),
        "gold": gold,
        "checker": checker,
        "meta": details,
        "licence": licence,
    }
