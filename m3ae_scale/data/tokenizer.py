"""Word pieces: BERT's lower-casing tokenizer, from a vocab.txt or trained on the user's own captions."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from m3ae_scale.errors import InputError

# Loader workers are the parallelism; the library's own threads would only warn after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; BERT reads a longer word as [UNK]


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into word-piece ids and back. It can be pickled into a loader worker."""

    pipeline: tokenizers.Tokenizer
    size: int  # word pieces in the vocabulary

    def encode(self, text: str, max_length: int) -> NDArray[np.int32]:
        """Return the first `max_length` word-piece ids of `text`: (words,) int32, no special tokens added."""
        window = 16 * max_length
        while window < len(text):
            # A book is not read for its first 64 pieces: pieces never cross white space, so a head that ends
            # there has the same pieces as the whole.
            head = text[: text.rfind(" ", 0, window) + 1]
            ids = self._ids(head)
            if len(ids) >= max_length:
                return ids[:max_length]
            window *= 4
        return self._ids(text)[:max_length]

    def words_of(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return the word piece of each id, "##" marking one that continues a word."""
        return [self.pipeline.id_to_token(int(i)) or "[UNK]" for i in ids]

    def _ids(self, text: str) -> NDArray[np.int32]:
        return np.array(self.pipeline.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a BERT vocabulary: one word piece a line, its id the line's number, from 0.

    Raises InputError for a file that is missing, not text, without [UNK], or with a word piece twice.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the vocabulary ({error.strerror}); give the path of a WordPiece vocab.txt"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: found bytes that are not UTF-8, expected a WordPiece vocab.txt") from None
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    vocabulary: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        if piece in vocabulary:
            raise InputError(
                f"{path}:{i + 1}: found {piece!r} again after line {vocabulary[piece] + 1}, expected each word piece "
                "once; remove the line"
            )
        vocabulary[piece] = i
    if "[UNK]" not in vocabulary:
        raise InputError(
            f"{path}: found {len(pieces)} lines without [UNK], expected a WordPiece vocab.txt: one word piece a line"
        )
    return Tokenizer(_pipeline(vocabulary), len(pieces))


def train_vocabulary(texts: Iterable[str], size: int, path: str | Path) -> int:
    """Learn at most `size` word pieces from `texts` and write them to `path`; returns how many they are.

    The same texts give the same file, whatever their order. [PAD], [UNK], [CLS], [SEP] and [MASK] come first.
    """
    pipeline = _pipeline({"[UNK]": 0})
    words = Counter(word for text in texts for word in _words(pipeline, text))
    letters = Counter[str]()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))
    if not letters:
        raise InputError("found no word in the captions to learn a vocabulary from; expected some text")
    room = max(1, (size - len(SPECIAL)) // 4)  # letters, and each as a continuation, take at most half
    alphabet = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:room])
    # The trainer numbers "##x" pieces in the order of a hash table that differs from run to run, and breaks ties by
    # number. Naming them up front fixes the numbers.
    fixed = [*SPECIAL, *alphabet, *("##" + letter for letter in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=fixed, limit_alphabet=len(alphabet), show_progress=False
    )
    pipeline.train_from_iterator(_repeated(words), trainer)
    vocabulary = pipeline.get_vocab(with_added_tokens=False)
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    Path(path).write_text("\n".join(pieces) + "\n", encoding="utf-8", newline="\n")
    return len(pieces)


def _pipeline(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece()
    return pipeline


def _words(pipeline: tokenizers.Tokenizer, text: str) -> list[str]:
    words = pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text))
    return [word for word, _ in words if len(word) <= LONGEST_WORD]


def _repeated(words: Counter[str], line: int = 1000) -> Iterator[str]:
    """Each word as often as it was counted, many to a line; sorted, for the same order in every run."""
    for word in sorted(words):
        whole, rest = divmod(words[word], line)
        yield from repeat(" ".join([word] * line), whole)
        if rest:
            yield " ".join([word] * rest)
