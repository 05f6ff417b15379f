"""The tokenizer against splits known from BERT's published rules, and training that gives the same file every time."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae_scale.data.tokenizer import SPECIAL, Tokenizer, load_tokenizer, train_vocabulary
from m3ae_scale.errors import InputError

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("un", "##aff", "##able", "runn", "##ing", "the", "dog", "dogs", "##s", "cafe", "naive", "a", "b", "##b"),
    *(",", "!", "'", "-", "t", "don", "$", "5", "##0", "中", "国", "grass", "##e"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unaffable running", "un ##aff ##able runn ##ing"),  # the example of BERT's own documentation
        ("The DOG, the dogs!", "the dog , the dogs !"),  # lower case; punctuation stands alone
        ("don't", "don ' t"),
        ("dog-dogs", "dog - dogs"),
        ("Café naïve CAFÉ", "cafe naive cafe"),  # accents are stripped
        ("cafe\u0301", "cafe"),  # also as combining marks
        ("a中国b", "a 中 国 b"),  # every CJK character is a word
        ("$50", "$ 5 ##0"),
        ("the cat", "the [UNK]"),  # no first piece fits
        ("dogx the", "[UNK] the"),  # a word whose rest does not fit is unknown as a whole
        ("grasse", "grass ##e"),  # longest piece first
        ("a\tb\n the\u00a0dog\u3000a", "a b the dog a"),  # any white space
        ("do\u0000gs do\ufffdgs", "dogs dogs"),  # NUL and the replacement character vanish
        ("do\u200bgs", "dogs"),  # as do format characters
        ("b" * 100 + " " + "b" * 101, " ".join(["b", *["##b"] * 99, "[UNK]"])),  # past 100 characters: unknown
        ("", ""),
        (" \n ", ""),
    ],
)
def test_splits_known_from_bert(tokenizer: Tokenizer, text: str, expected: str) -> None:
    assert tokenizer.words_of(tokenizer.encode(text, 256)) == expected.split()


def test_ids_are_line_numbers_and_no_special_token_is_added(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the dog", 64)
    assert ids.dtype == np.int32 and ids.tolist() == [PIECES.index("the"), PIECES.index("dog")]
    assert tokenizer.size == len(PIECES)


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["dog", "unaffable", "the,", "a中", "xyz", "b" * 120, "  "]), max_size=120),
    space=st.sampled_from([" ", "\n", "   "]),
    length=st.integers(1, 9),
)
def test_a_limit_takes_the_first_pieces_of_the_whole(
    tokenizer: Tokenizer, words: list[str], space: str, length: int
) -> None:
    text = space.join(words)
    assert tokenizer.encode(text, length).tolist() == tokenizer.encode(text, 10**6)[:length].tolist()


def test_a_tokenizer_can_be_pickled(tokenizer: Tokenizer) -> None:
    text = "the unaffable dogs, 中国"
    assert np.array_equal(pickle.loads(pickle.dumps(tokenizer)).encode(text, 64), tokenizer.encode(text, 64))


FORK = """
import multiprocessing, sys
from m3ae_scale.data.tokenizer import load_tokenizer, train_vocabulary
train_vocabulary(["the dogs"] * 9, 60, sys.argv[1])
tokenizer = load_tokenizer(sys.argv[1])
def encode(text):
    return tokenizer.encode(text, 9).tolist()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(encode, ["the dogs"] * 4) == [encode("the dogs")] * 4
"""


def test_a_forked_worker_encodes_without_a_warning(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "v.txt")], capture_output=True, text=True)
    assert run.returncode == 0 and "parallelism" not in run.stderr, run.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the vocabulary"),
        (b"the\ndog\n", r"without \[UNK\]"),
        (b"", r"without \[UNK\]"),
        (b"[UNK]\nthe\n[UNK]\n", "vocab.txt:3: found '\\[UNK\\]' again after line 1"),
        (b"[UNK]\n\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_wrong_vocabulary_is_named_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_windows_line_ends_are_no_part_of_a_word_piece(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\r\nthe\r\ndog\r\n")
    assert load_tokenizer(tmp_path / "vocab.txt").encode("the dog", 9).tolist() == [1, 2]


CAPTIONS = [f"a {size} red {shape} in the café" for size in ("small", "large") for shape in ("star", "ring", "heart")]

TRAIN = """
import sys
from m3ae_scale.data.tokenizer import train_vocabulary
captions = eval(sys.argv[2])
train_vocabulary(captions if sys.argv[3] == "0" else reversed(captions), 80, sys.argv[1])
"""


def test_training_gives_the_same_file_in_every_process_and_order(tmp_path: Path) -> None:
    for i in range(4):
        command = [sys.executable, "-c", TRAIN, str(tmp_path / f"{i}.txt"), repr(CAPTIONS * 3), str(i % 2)]
        subprocess.run(command, check=True)
    first = (tmp_path / "0.txt").read_bytes()
    assert all((tmp_path / f"{i}.txt").read_bytes() == first for i in range(1, 4))


def test_a_trained_vocabulary_covers_its_texts(tmp_path: Path) -> None:
    size = train_vocabulary(CAPTIONS * 3, 200, tmp_path / "vocab.txt")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.size == size <= 200
    assert tokenizer.words_of(range(5)) == list(SPECIAL)
    assert tokenizer.words_of(tokenizer.encode("A small red star in the cafe", 64)) == [
        "a",
        "small",
        "red",
        "star",
        "in",
        "the",
        "cafe",
    ]
    spelled = tokenizer.words_of(tokenizer.encode("elm", 64))
    assert "[UNK]" not in spelled and "".join(p.removeprefix("##") for p in spelled) == "elm"


def test_training_keeps_to_the_size(tmp_path: Path) -> None:
    for size in (10, 20, 60):
        assert train_vocabulary(CAPTIONS, size, tmp_path / "vocab.txt") <= size
    with pytest.raises(InputError, match="no word"):
        train_vocabulary(["", "  "], 100, tmp_path / "vocab.txt")
