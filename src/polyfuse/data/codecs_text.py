"""Texts to token ids, with a byte-pair tokenizer trained on the training texts.

Source: byte-pair encoding, https://arxiv.org/abs/1508.07909, as in the `tokenizers` library. Ids: 0 padding, 1 unknown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, show, source_of
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.subtitles import Subtitles, read_subtitles
from polyfuse.data.table_csv import BadText

PADDING, UNKNOWN = 0, 1
_LONGEST = 128
_FIT_TEXTS = 200_000
_MEASURED_TEXTS = 20_000
_CHARACTERS = 64  # per token kept: bounds the work on a cell that holds a whole book


def readable(cell: Any) -> str | None:
    """The cell as text, or None if it is not one."""
    if type(cell) is str:
        return cell
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            return None
    return None


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-pair tokenizer over NFKC lower-case words, punctuation apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106 (a token of a text, not a password)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass
class TextCodec(Codec):
    """Texts to ``{"ids": int32 (B, L), "mask": bool (B, L)}``; a filled cell has at least one token."""

    tokenizer: str = ""
    max_length: int = _LONGEST
    subtitles: bool = False
    type: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        self._tokenizer = Tokenizer.from_str(self.tokenizer)
        self._tokenizer.enable_truncation(self.max_length)
        self._tokenizer.enable_padding(length=self.max_length, pad_id=PADDING, pad_token="[PAD]")  # noqa: S106
        self._vocab_size = int(self._tokenizer.get_vocab_size())

    @property
    def spec(self) -> ModalitySpec:
        """Vocabulary and length."""
        return ModalitySpec(self.name, "text", {"vocab_size": self._vocab_size, "max_length": self.max_length})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "TextCodec | None":
        """Train the tokenizer; choose the length that 95 % of the training texts need."""

        def texts() -> Iterator[str]:
            for cells in train():
                found = _spoken(cells[0], reading)[0] if config.subtitles else cells[0]
                yield from (text for cell in found if (text := readable(cell)) is not None)

        if next(texts(), None) is None:
            return None
        tokenizer = train_tokenizer(islice(texts(), _FIT_TEXTS), config.vocab_size)
        length = config.max_length
        if length is None:
            sample = [text[: _LONGEST * _CHARACTERS] for text in islice(texts(), _MEASURED_TEXTS)]
            lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(sample)]
            length = int(min(max(np.ceil(np.quantile(lengths, 0.95)), 1), _LONGEST))
        return cls(
            name, config.all_columns, tokenizer=tokenizer.to_str(), max_length=length, subtitles=config.subtitles
        )

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Tokenize all filled cells at once."""
        column, bad = _spoken(cells[0], reading) if self.subtitles else (cells[0], [])
        texts = [readable(cell) for cell in column]
        present = np.array([text is not None for text in texts], dtype=bool)
        out = self.zeros(len(texts))
        if present.any():
            limit = self.max_length * _CHARACTERS
            found = self._tokenizer.encode_batch([text[:limit] for text in texts if text is not None])
            ids = np.array([encoding.ids for encoding in found], dtype=np.int32)
            ids[(ids == PADDING).all(1), 0] = UNKNOWN  # nothing the tokenizer knows is still something
            out["ids"][present] = ids
            out["mask"][present] = ids != PADDING
        problems = [
            (i, "bad UTF-8" if isinstance(column[i], BadText | bytes) else "not a text", show(column[i]))
            for i in np.flatnonzero(~present).tolist()
            if column[i] is not None
        ]
        return Encoding(out, present, problems + bad)

    def state(self) -> dict[str, Any]:
        """Tokenizer and length."""
        spoken = {"subtitles": True} if self.subtitles else {}
        return {"tokenizer": self.tokenizer, "max_length": self.max_length, **spoken}


def _spoken(cells: Sequence[Any], reading: Reading) -> tuple[list[str | None], list[tuple[int, str, str]]]:
    """What the subtitle files of a column say, and their problems: a file with some bad cues is here all the same."""

    def decode(cell: Any) -> Subtitles:
        found = read_subtitles(source_of(cell, reading))
        if not found.cues:
            raise Broken("undecodable", "; ".join(found.lines(3)) or "no cue")
        return found

    files, problems = decode_cells(cells, decode, reading.pool)
    for i, found in enumerate(files):
        if found is not None and found.problems:
            problems.append((i, "bad cues", f"{show(cells[i])}, {'; '.join(found.lines(3))}"))
    return [None if found is None else found.text for found in files], sorted(problems)
