"""Near-duplicates against datasketch, against all pairs by exact Jaccard, and against bugs seen
elsewhere."""

import functools
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.dedup import bands as lsh
from lib.dedup import minhash, near_duplicates, textfile
from lib.files import ROOT

MIX, MASK = minhash.MIX, (1 << 64) - 1
POOL = [
    " ".join(random.Random(i).choices("abcdefghij", k=random.Random(i).randint(2, 8))).replace(
        " ", ""
    )
    for i in range(2000)
]


def sentence(rng, low=20, high=80):
    return " ".join(rng.choices(POOL, k=rng.randint(low, high)))


def edited(rng, text, share):
    return " ".join(rng.choice(POOL) if rng.random() < share else word for word in text.split())


def corpus(size=250, seed=3):
    """Texts with edited copies of every degree, in random order."""
    rng = random.Random(seed)
    base = [sentence(rng) for _ in range(size)]
    texts = base + [edited(rng, rng.choice(base), rng.uniform(0, 0.25)) for _ in range(size)]
    rng.shuffle(texts)
    return texts


@functools.cache
def grams(text):
    return {text[i : i + 3] for i in range(len(text) - 2)} or {text}


def exact(a, b):
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def hash_of_three(raw):
    """What the kernel hashes, written again in plain Python: raw is three code points in UTF-32."""
    a, b, c = np.frombuffer(raw, np.uint32).tolist()
    return (((a << 42 | b << 21 | c) * MIX) & MASK) >> 32


def oracle(text, permutations=128, seed=1):
    sketch = MinHash(num_perm=permutations, seed=seed, scheme="affine32", hashfunc=hash_of_three)
    sketch.update_batch([gram.encode("utf-32-le", "surrogatepass") for gram in grams(text)])
    return sketch


TRICKY = [
    "hello world, this is a test",
    "naïve café ☕ text",
    "日本語の文章です。" * 3,
    "👩‍👩‍👧 families 🏳️‍🌈",
    "abc",
    "aaaaaaaa",
    "\x00\x00\x00\x00",
    "lone \ud800 surrogate",
    "x" * 100_000 + "y",
    "".join(chr(c) for c in range(0x4E00, 0x4E00 + 20_000)),
]


def signatures(texts, permutations=128, seed=1):
    """Our MinHash signatures of character 3-grams, uint32 [texts, permutations]."""
    buffer, starts, ends = textfile.pack([textfile.encode(text) for text in texts])
    keys, hashes = np.empty(minhash.CHUNK, np.uint64), np.empty(minhash.CHUNK, np.uint32)
    options = (near_duplicates.word_characters("char3"), *minhash.permutations(permutations, seed))
    options += (np.empty(4096, np.uint32), keys, hashes)
    out = np.empty((len(texts), permutations), np.uint32)
    for start, end, signature in zip(starts, ends, out, strict=True):
        minhash._sign(buffer, start, end, *options, signature)
    return out


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_signature_is_datasketchs(text):
    assert (signatures([text])[0] == oracle(text).hashvalues).all()


@given(st.lists(st.text(min_size=3, max_size=200), min_size=1, max_size=5), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_signatures_are_datasketchs_for_any_text_and_seed(texts, seed):
    ours = signatures(texts, permutations=64, seed=seed)
    for text, signature in zip(texts, ours, strict=True):
        assert (signature == oracle(text, 64, seed).hashvalues).all()


def test_word_shingles_are_the_words_in_a_plain_python_reading():
    def word_key(word):
        key = 0
        for c in word:
            key = (key ^ ord(c)) * MIX & MASK
            key ^= key >> 29
        return key

    def keys(text):
        words, found = re.findall(r"\w+", text.lower()), set()
        for i in range(len(words) - 4):
            key = 0
            for word in words[i : i + 5]:
                key = (key ^ word_key(word)) * MIX & MASK
                key ^= key >> 32
            found.add(key >> 1)
        return found

    for text in [
        "One two, three-four FIVE six; seven_8 nine!",
        "Ärger über das große Öl im Süden, sagt ER.",
        "a b c d e",
        "日本 語 の 文 章 です",
    ]:
        assert near_duplicates.shingles(text, "word5") == keys(text)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_jaccard_is_that_of_the_sets(a, b):
    if min(len(a), len(b)) >= 3:
        assert near_duplicates.jaccard(a, b) == exact(a, b)
    else:
        assert near_duplicates.jaccard(a, b) == (a == b)


def test_candidate_pairs_are_those_of_datasketchs_index():
    texts = corpus(120)
    index = MinHashLSH(threshold=0.8, num_perm=128)
    sketches = [oracle(text) for text in texts]
    for i, sketch in enumerate(sketches):
        index.insert(i, sketch)
    expected = {(i, j) for j, sketch in enumerate(sketches) for i in index.query(sketch) if i < j}
    bands, rows = lsh.lsh_parameters(0.8, 128, compat=True)
    assert (bands, rows) == (index.b, index.r) == (9, 13)
    signed = signatures(texts)
    ours = {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if (signed[i, :117] == signed[j, :117]).reshape(9, 13).all(axis=1).any()
    }
    assert ours == expected and len(ours) > 20
    drops, stats = near_duplicates.find(texts, bands="datasketch", permutations=128)
    assert (stats["bands"], stats["rows"]) == (9, 13)
    pairs = {
        (min(p), max(p)) for p in zip(drops["row"].tolist(), drops["keeper"].tolist(), strict=True)
    }
    assert pairs <= expected and pairs


def greedy(texts, order, threshold):
    """The definition: go through the texts in order, drop what is alike to a kept one."""
    kept, dropped = [], set()
    for i in order:
        if any(exact(texts[i], texts[k]) >= threshold for k in kept):
            dropped.add(i)
        else:
            kept.append(i)
    return dropped, kept


@pytest.mark.parametrize("by_priority", [False, True])
def test_against_all_pairs_by_exact_jaccard(by_priority):
    texts = corpus()
    priority = np.random.default_rng(1).permutation(len(texts)) if by_priority else None
    order = np.argsort(priority) if by_priority else range(len(texts))
    expected, _ = greedy(texts, order, 0.8)
    # one row a band at 64 bands finds every pair at 0.8: the result is the definition itself
    drops, stats = near_duplicates.find(texts, priority, bands=(64, 2), template_rows=0)
    assert set(drops["row"]) == expected and len(expected) > 50
    assert stats["drops"] == len(expected) and stats["pairs_alike"] >= len(expected)
    for row, keeper, value in drops.itertuples(index=False):
        assert value == exact(texts[row], texts[keeper]) >= 0.8
    found, _ = near_duplicates.find(texts, priority, template_rows=0)
    assert len(set(found["row"]) & expected) >= 0.97 * len(expected)


def test_no_orphans_and_no_chain_is_swallowed():
    texts = corpus(seed=11)
    drops, _ = near_duplicates.find(texts)
    dropped = set(drops["row"])
    assert not dropped & set(drops["keeper"])  # a keeper is never dropped itself
    rng = random.Random(5)
    chain = [sentence(rng, 100, 100)]
    for i in range(6):  # neighbours are alike, ends are not: union-find would keep one of seven
        words = chain[-1].split()
        words[i * 8 : (i + 1) * 8] = rng.choices(POOL, k=8)
        chain.append(" ".join(words))
    drops, _ = near_duplicates.find(chain, bands=(64, 2))
    kept = [i for i in range(7) if i not in set(drops["row"])]
    assert len(kept) >= 2 and set(drops["row"]) == greedy(chain, range(7), 0.8)[0]


def test_first_copy_stays_and_row_zero_can_be_keeper_and_drop():
    text = sentence(random.Random(1))
    drops, stats = near_duplicates.find([text] * 4)
    assert drops["row"].tolist() == [1, 2, 3] and drops["keeper"].tolist() == [0, 0, 0]
    assert drops["jaccard"].tolist() == [1.0] * 3 and stats["cluster_sizes"] == {4: 1}
    drops, _ = near_duplicates.find([text] * 3, priority=[9, 0, 9])
    assert drops["row"].tolist() == [0, 2] and drops["keeper"].tolist() == [1, 1]
    assert near_duplicates.cluster_sizes(drops) == {1: 3}


@pytest.mark.parametrize("shingle", near_duplicates.SHINGLES)
def test_empty_and_short_texts_match_only_their_equals(shingle):
    texts = ["", "a", "b", "ab", "ba", "!!", "??", "", "ab", "日", "本", "a\x00", "hi you", "hi me"]
    drops, _ = near_duplicates.find(texts, shingle=shingle)
    assert list(zip(drops["row"].tolist(), drops["keeper"].tolist(), strict=True)) == [
        (7, 0),
        (8, 3),
    ]


def test_nothing_and_one_text():
    for texts in ([], ["only one"], [""]):
        drops, stats = near_duplicates.find(texts)
        assert len(drops) == 0 and list(drops.columns) == ["row", "keeper", "jaccard"]
        assert stats["texts"] == len(texts)


def test_a_stream_with_labels_and_rows_of_megabytes():
    rng = random.Random(2)
    long = sentence(rng, 200_000, 200_000)
    rows = [("first", long), ("second", "small " + sentence(rng)), (0, long + " tail")]
    drops, stats = near_duplicates.find(lambda: iter(rows))
    assert drops.iloc[0].tolist()[:2] == [0, "first"] and drops["jaccard"][0] > 0.99
    assert stats["texts"] == 3


def test_threads_and_block_size_change_nothing(monkeypatch):
    texts = corpus(seed=7)
    one, _ = near_duplicates.find(texts)
    monkeypatch.setattr(textfile, "BLOCK", 37)
    two, _ = near_duplicates.find(texts, threads=2)
    assert one.equals(two)


def test_word_shingles_ignore_case_and_punctuation():
    a = sentence(random.Random(4))
    b = a.upper().replace(" ", ", ")
    drops, _ = near_duplicates.find([a, b], shingle="word5")
    assert drops["jaccard"].tolist() == [1.0]
    assert len(near_duplicates.find([a, b], shingle="char3")[0]) == 0


WRAPPER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nSay which of the following words is the odd one out: {}\n\n"
    "### Response:\nI am sorry, but I can not tell you that without further information about them."
)


def test_templated_rows_do_not_collapse():
    slots = [f"{POOL[i]} {POOL[-i]}" for i in range(1, 1001)]
    texts = [WRAPPER.format(slot) for slot in dict.fromkeys(slots)]
    bare, _ = near_duplicates.find(texts, template_rows=0)
    assert len(bare) > 0.9 * len(texts)  # the wrong way: one row of the template stands for all
    drops, stats = near_duplicates.find(texts)
    assert len(drops) < 0.02 * len(texts)
    assert stats["templated_rows"] == len(texts)
    assert (
        sum(found["text"].startswith("Below is an instruction") for found in stats["templates"])
        >= 1
    )


def test_near_duplicates_inside_a_template_are_still_found():
    rng = random.Random(8)
    slots = [sentence(rng, 25, 40) for _ in range(300)]
    texts = [WRAPPER.format(slot) for slot in slots] + [
        WRAPPER.format(slot + " too") for slot in slots[:40]
    ]
    drops, _ = near_duplicates.find(texts, bands=(64, 2))
    assert set(drops["row"]) == set(range(300, 340)) and drops["keeper"].tolist() == list(range(40))


@pytest.mark.parametrize("place", [1, 9, 14, 28])
def test_an_edit_in_the_wording_does_not_hide_a_near_duplicate(place):
    rng = random.Random(12)
    slots = [sentence(rng, 30, 40) for _ in range(200)]
    texts = [WRAPPER.format(slot) for slot in slots]
    copies = []
    for text in texts[:60]:
        words = text.split(" ")
        words[place] = rng.choice(POOL)
        copies.append(" ".join(words))
    drops, stats = near_duplicates.find(texts + copies, bands=(64, 2))
    found = dict(zip(drops["row"].tolist(), drops["keeper"].tolist(), strict=True))
    alike = [i for i in range(60) if exact(texts[i], copies[i]) >= 0.8]
    assert len(alike) == 60 and sum(found.get(200 + i) == i for i in alike) >= 57
    assert all(row >= 200 for row in found) and stats["templated_rows"] >= 200


def test_one_slot_in_two_templates_is_two_rows():
    rng = random.Random(9)
    words = [" ".join(rng.choices(POOL, k=2)) for _ in range(80)]
    first = [f"Please translate the following word into French: {w}" for w in words]
    second = [f"Give me a short definition of this word: {w}" for w in words]
    assert len(near_duplicates.find(first + second)[0]) == 0  # bare, the two would be equal


def test_many_copies_of_one_text_are_no_template():
    texts = corpus(100) + [sentence(random.Random(77))] * 60
    drops, stats = near_duplicates.find(texts)
    assert stats["templated_rows"] == 0
    assert len(drops[drops["row"] > 200]) == 59


def test_s_curve_and_parameters():
    assert lsh.lsh_parameters(0.8) == (32, 8) and lsh.lsh_parameters(0.8, compat=True) == (17, 15)
    assert lsh.found_share(0.8, 9, 13) == pytest.approx(0.40, abs=0.005)
    assert lsh.found_share(0.85, 9, 13) == pytest.approx(0.69, abs=0.005)
    curve = lsh.s_curve(16, 8)
    assert curve[0]["jaccard"] == 0.5 and curve[-1] == {"jaccard": 1.0, "found": 1.0}
    assert all(a["found"] < b["found"] for a, b in zip(curve, curve[1:], strict=False))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "shingle", lambda: near_duplicates.find(["a"], shingle="char4")),
        (ValueError, "threshold", lambda: near_duplicates.find(["a"], threshold=0)),
        (ValueError, "bands", lambda: near_duplicates.find(["a"], bands=(40, 8))),
        (ValueError, "priority", lambda: near_duplicates.find(["a", "b"], priority=[1])),
        (
            TypeError,
            "row 1: .*NoneType",
            lambda: near_duplicates.find([(0, "a"), (1, None)]),
        ),
    ],
)
def test_wrong_use_says_what_is_wrong(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_a_text_longer_than_a_chunk_of_shingles_is_read_in_pieces():
    """What a kernel holds at a time does not depend on the length of a text; signatures and Jaccard
    do not show it."""
    rng = random.Random(6)
    long = sentence(rng, 9000, 9000)  # several chunks of shingles
    assert len(long) > 4 * minhash.CHUNK
    assert (signatures([long])[0] == oracle(long).hashvalues).all()
    changed = edited(rng, long, 0.03)
    drops, _ = near_duplicates.find([long, changed])
    assert drops["jaccard"].tolist() == [exact(long, changed)]
    for shingle in near_duplicates.SHINGLES:
        drops, _ = near_duplicates.find([long, long + " x"], shingle=shingle)
        assert drops["jaccard"].tolist() == [near_duplicates.jaccard(long, long + " x", shingle)]


def test_many_equal_rows_take_one_comparison_each():
    text = sentence(random.Random(1))
    drops, stats = near_duplicates.find([text] * 3000, template_rows=0)
    assert len(drops) == 2999 and set(drops["keeper"]) == {0} and set(drops["jaccard"]) == {1.0}
    assert stats["pairs_compared"] == 2999 and stats["most_compared"] == 1


def test_rows_shorter_than_a_shingle_alone():
    texts = [chr(97 + i % 26) + "x" * (i % 2) for i in range(520)]
    drops, stats = near_duplicates.find(texts)
    assert len(drops) == 520 - len(set(texts)) and set(drops["jaccard"]) == {1.0}
    assert stats["pairs_compared"] == len(drops)


def test_a_full_disk_is_named(monkeypatch):
    full = os.fdopen(os.open("/dev/full", os.O_RDWR), "w+b", 0)
    monkeypatch.setattr(near_duplicates.tempfile, "TemporaryFile", lambda dir=None: full)
    with pytest.raises(OSError, match="no space for the text of 2 rows.*TMPDIR") as caught:
        near_duplicates.find(["one text", "another"])
    assert caught.value.errno == 28


@pytest.mark.slow
def test_works_where_no_cache_can_be_written(tmp_path):
    """Package folder and home both unwritable (for root too: files stand where folders would have
    to be)."""
    package = tmp_path / "lib" / "dedup"
    package.mkdir(parents=True)
    for path in (*(ROOT / "lib/dedup").glob("*.py"), *(ROOT / "lib").glob("*.py")):
        copy = tmp_path / path.relative_to(ROOT)
        copy.write_bytes(path.read_bytes())
    (package / "__pycache__").write_text("in the way")
    (tmp_path / "file").write_text("in the way")
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "file"),
        "XDG_CACHE_HOME": str(tmp_path / "file"),
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    find = "from lib.dedup.near_duplicates import find"
    code = f"{find}; print(len(find(['same text'] * 3)[0]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.stdout.strip() == "2", done.stderr[-2000:]
