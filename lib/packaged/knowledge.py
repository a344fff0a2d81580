"""Multiple choice about countries and chemical elements, from facts that two small packages carry.

countryinfo (MIT) and periodictable (public domain). A country or element belongs to one split by
the hash of its name, so no fact of a test item, in whatever form, is asked or told in a training
row. Names that the packages hold in an outdated or disputed form are left out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lib import prompts
from lib.files import content_hash

SHARES = {"test": 50, "probe": 20, "train": 30}  # per cent of the subjects
LICENCE = "MIT (countryinfo); public domain (periodictable)"
DOUBTFUL = {  # renamed, moved, dissolved, disputed, or the record is wrong in countryinfo 1.0.1
    "Bolivia",
    "Burundi",
    "Czech Republic",
    "Hong Kong",
    "Israel",
    "Kazakhstan",
    "Palestine",
    "Puerto Rico",
    "Republic of Macedonia",
    "Serbia and Montenegro",
    "South Africa",
    "Sri Lanka",
    "Swaziland",
    "Taiwan",
}
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "pt": "Portuguese",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "zh": "Chinese",
    "ru": "Russian",
    "tr": "Turkish",
    "el": "Greek",
    "pl": "Polish",
    "hu": "Hungarian",
    "fi": "Finnish",
    "sv": "Swedish",
    "da": "Danish",
    "th": "Thai",
    "vi": "Vietnamese",
    "fa": "Persian",
    "am": "Amharic",
    "uk": "Ukrainian",
    "ro": "Romanian",
    "bn": "Bengali",
    "id": "Indonesian",
    "km": "Khmer",
    "ne": "Nepali",
    "sq": "Albanian",
    "et": "Estonian",
}
# the record is incomplete or out of date
UNCERTAIN_LANGUAGE = {"Mali", "Niger", "Burkina Faso", "Philippines"}
TWO_CONTINENTS = ("Russia", "Turkey", "Georgia", "Egypt")  # or a doubtful one
WITH_ARTICLE = re.compile("^(United|Netherlands|Philippines|Central|Dominican|Democratic|Republic)")
CONTINENTS = ("Africa", "Americas", "Asia", "Europe", "Oceania")


def split_of(subject: str) -> str:
    """The one split in which a country or element may occur."""
    place = int(content_hash("knowledge", subject)[:8], 16) % 100
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    raise AssertionError("shares add up to 100")


@lru_cache(maxsize=1)
def facts() -> tuple[tuple[str, str, str, str, str], ...]:
    """(subject, task, question, answer, statement) of every fact, in a fixed order."""
    import countryinfo
    import periodictable

    every = []
    for path in sorted((Path(countryinfo.__file__).parent / "data").glob("*.json")):
        country = json.loads(path.read_text(encoding="utf-8"))
        small = (country.get("population") or 0) < 1_000_000
        if country.get("name") not in DOUBTFUL and country.get("capital") and not small:
            every += _country_facts(country)
    for element in periodictable.elements:
        if 1 <= element.number <= 103:
            every += _element_facts(element)
    return tuple(every)


def _country_facts(country: dict) -> list[tuple]:
    name = WITH_ARTICLE.sub(r"the \1", country["name"].replace("The ", "the "))
    capital, spoken, known = country["capital"], country.get("languages") or [], []
    if capital.split()[0] not in name:  # "Mexico City" would answer itself
        asked = f"What is the capital of {name}?"
        known.append((name, "capitals", asked, capital, f"The capital of {name} is {capital}."))
    if country.get("region") in CONTINENTS and name not in TWO_CONTINENTS:
        region = country["region"].replace("Americas", "the Americas")
        asked = f"In which part of the world does {name} lie?"
        said = f"{name[0].upper()}{name[1:]} lies in {region}."
        known.append((name, "continents", asked, region, said))
    if len(spoken) == 1 and spoken[0] in LANGUAGES and name not in UNCERTAIN_LANGUAGE:
        language = LANGUAGES[spoken[0]]
        asked = f"Which of these languages is official in {name}?"
        said = f"{language} is an official language of {name}."
        known.append((name, "languages", asked, language, said))
    return known


def _element_facts(element) -> list[tuple]:
    name, symbol, number, known = element.name, element.symbol, str(element.number), []
    if symbol not in ("B", "C"):  # would read like the letter of an option
        asked = f"What is the chemical symbol of {name}?"
        known.append(
            (name, "symbols", asked, symbol, f"The chemical symbol of {name} is {symbol}.")
        )
    if element.number <= 56:
        asked = f"What is the atomic number of {name}?"
        known.append((name, "numbers", asked, number, f"The atomic number of {name} is {number}."))
    return known


def _distractors(task: str, question: str, answer: str, rng: random.Random) -> list[str]:
    if task == "continents":
        pool = sorted({fact[3] for fact in facts() if fact[1] == task})
    elif task == "numbers":
        pool = [str(n) for n in range(max(1, int(answer) - 6), int(answer) + 7)]
    elif task == "symbols":
        # symbols that begin alike, or the first letter would give the answer away
        pool = sorted({fact[3] for fact in facts() if fact[1] == task and fact[3][0] == answer[0]})
        pool += [name for name in _look_alikes(question) if name not in pool]
    else:
        pool = sorted({fact[3] for fact in facts() if fact[1] == task})
    pool = [option for option in pool if option != answer]
    return rng.sample(pool, 3)


def _look_alikes(question: str) -> list[str]:
    """Symbol-like strings made from the element's own name: plausible and wrong."""
    name = re.sub(r".* of (\w+)\?", r"\1", question)
    real = {fact[3] for fact in facts() if fact[1] == "symbols"}
    made = {name[0].upper() + letter for letter in name[1:] + "aimnr"}
    return sorted(made - real)


def items(split: str) -> Iterator[dict]:
    """Four-option items about the subjects of a split; the right letters are spread by hash."""
    for subject, task, question, answer, statement in facts():
        if split_of(subject) != split:
            continue
        rng = random.Random(content_hash("options", question))
        options = [answer, *_distractors(task, question, answer, rng)]
        rng.shuffle(options)
        yield prompts.item(
            task,
            "knowledge",
            question,
            prompts.LETTERS[options.index(answer)],
            "choice",
            licence=LICENCE,
            options=options,
            meta={"subject": subject, "statement": statement},
        )


def training(seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, response) pairs about training subjects, by `seed`: as choice and as question."""
    rows = list(items("train"))
    random.Random(f"knowledge/{seed}").shuffle(rows)
    for row in rows:
        yield row["prompt"], f"{row['meta']['statement']} {prompts.ANSWER_MARK} {row['gold']}."
        if "of these" not in row["meta"]["question"]:
            yield row["meta"]["question"], row["meta"]["statement"]
