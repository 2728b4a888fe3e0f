"""Texts to token ids and back, with word pieces learned from the training texts.

Shapes: B texts, T tokens. Masks: True = a token.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PAD, UNK, CLS, SEP, MASK, BOS, EOS = range(7)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]")
_CHARACTERS = 64  # per token kept: bounds the work on a cell that holds a whole book


class WordTokenizer:
    """Lower-case word pieces; ids 0 to 6 are padding, unknown, CLS, SEP, MASK, BOS and EOS.

    Source: byte-pair merges within words, https://arxiv.org/abs/1508.07909, of the ``tokenizers`` library; a frequent
    word is one token. ``[CLS] text [SEP]`` is what encoders read, ``[BOS] text [EOS]`` what decoders write.

    Args:
        tokenizer: What ``to_str`` of an earlier one returned, parsed.

    Example:
        >>> words = WordTokenizer.train(["a red circle", "a red square"], vocab_size=40)
        >>> ids, mask = words.encode(["a red circle", ""], max_length=6)
        >>> words.decode(ids[0]), ids[1].tolist(), mask.sum(dim=1).tolist()
        ('a red circle', [0, 0, 0, 0, 0], [5, 0])
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4000) -> Self:
        """Learn the pieces; the same texts give the same pieces.

        Raises:
            ValueError: If ``vocab_size`` leaves no room for pieces.
        """
        if vocab_size <= len(SPECIALS):
            raise ValueError(f"vocab_size must be above {len(SPECIALS)}, the special tokens, got {vocab_size}")
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106 (a token of a text, not a password)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        # A mark before each word: the library numbers the marks that stand behind words in an order that varies.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIALS), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """From ``to_str``."""
        return cls(Tokenizer.from_str(text))

    @classmethod
    def read(cls, path: Path) -> Self:
        """From the file that ``write`` made."""
        return cls.from_str(path.read_text(encoding="utf-8"))

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(self.to_str(), encoding="utf-8")

    def to_str(self) -> str:
        """JSON."""
        text: str = self._tokenizer.to_str()
        return text

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], max_length: int, *, decoder: bool = False) -> tuple[Tensor, Tensor]:
        """``(B, T)`` int64 ids and bool mask, T the longest of them and at most ``max_length``, marks included.

        An empty text is absent: its mask is False throughout. A text too long loses its end, not its last mark.

        Args:
            texts: B texts.
            max_length: Most tokens.
            decoder: ``[BOS] text [EOS]`` in place of ``[CLS] text [SEP]``.
        """
        first, last = (BOS, EOS) if decoder else (CLS, SEP)
        cut = [text[: max_length * _CHARACTERS] for text in texts]
        found = [encoding.ids[: max_length - 2] for encoding in self._tokenizer.encode_batch(cut)]
        rows = [[first, *ids, last] if text.strip() else [] for text, ids in zip(texts, found, strict=True)]
        out = np.zeros((len(rows), max(map(len, rows), default=0) or 1), dtype=np.int64)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids)] = ids
        ids_BT = torch.from_numpy(out)
        return ids_BT, ids_BT != PAD

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of one row of ids, marks left out."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._tokenizer.decode([i for i in numbers if i >= len(SPECIALS) or i == UNK])
        return text.strip()
