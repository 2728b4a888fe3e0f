"""CLIP's tokenizer: texts to ids, from a checkpoint's own files or from the merges that OpenAI published.

Source: https://arxiv.org/abs/2103.00020, section 2.4: byte-pair encoding of lower-case text, words ended by ``</w>``.
"""

import gzip
import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from polyfuse.errors import UserError

#: OpenAI's file of merges, as the repository and open_clip's wheel call it.
MERGES = "bpe_simple_vocab_16e6.txt.gz"
FETCHED = "clip_vocab"
_VOCABULARY = 49406  # 512 bytes within and at the end of a word, 48,894 merges; two special tokens follow
_BEGIN, _END = ("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>")
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CHARACTERS = 64  # per token kept: bounds the work on a text that is a whole book

# What ftfy, which the original runs first, changes letter by letter. It also repairs text decoded with the wrong
# encoding ("cafÃ©"), which is not done here.
_LIGATURES = [0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
_LETTERS = {
    **dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in [*_LIGATURES, *range(0xFF01, 0xFFF0)]},
    0x149: "'n",
    0xFB05: "\N{LATIN SMALL LETTER LONG S}t",
    0x3000: " ",
    **dict.fromkeys([*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF], None),
    **dict.fromkeys(range(0xFFF9, 0xFFFD), None),
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),  # half a character: not UTF-8
}


def clean_text(text: str) -> str:
    r"""Lower case, single spaces, plain quotes, HTML entities undone, one form per character (NFC).

    Example:
        >>> clean_text("  It’s  a &lt;CAT&gt;\n")
        "it's a <cat>"
    """
    text = unicodedata.normalize("NFC", text.translate(_LETTERS))
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


class ClipTokenizer:
    """Texts to ids of one length: start, tokens, end, padding.

    A text that is too long keeps its beginning, and the end token stands last. Names of special tokens inside of a text
    are text like any other. Differs: OpenAI's code reads them as special tokens, so that a caption could end early.

    Args:
        tokenizer: From text to tokens, without start and end.
        begin_id: Id of the start of a text.
        end_id: Id of its end.
        context_length: Length of a row.
        pad_id: What fills it.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, begin_id: int, end_id: int, context_length: int = 77, pad_id: int = 0
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length must be at least 2 (start and end), got {context_length}")
        self._tokenizer = tokenizer
        self.begin_id, self.end_id, self.pad_id = begin_id, end_id, pad_id
        self.context_length = context_length
        # A tokenizer.json may carry settings of its own; rows are made here.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids ``(N, context_length)``, int64, of N texts.

        Raises:
            TypeError: If one of them is not a string.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(f"texts must be strings, got {type(wrong).__name__}")
        most = self.context_length * _CHARACTERS
        found = self._tokenizer.encode_batch([clean_text(text[:most]) for text in texts], add_special_tokens=False)
        ids = torch.full((len(texts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, encoding in zip(ids, found, strict=True):
            whole = [self.begin_id, *encoding.ids[: self.context_length - 2], self.end_id]
            row[: len(whole)] = torch.tensor(whole)
        return ids

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json`` that ``tokenizer_from_json`` reads."""
        self._tokenizer.save(str(path))


def read_tokenizer(folder: Path, *, context_length: int = 77) -> ClipTokenizer:
    """The tokenizer of a checkpoint's folder.

    Taken is the first of ``tokenizer.json``, ``vocab.json`` with ``merges.txt``, OpenAI's file of merges; then the file
    that ``polyfuse weights fetch clip_vocab`` brought, which is the vocabulary of every CLIP of OpenAI, open_clip's
    plain models and MobileCLIP.

    Raises:
        UserError: If none of them is there, or the files are not what they should be.
    """
    if (folder / "tokenizer.json").is_file():
        return tokenizer_from_json(folder / "tokenizer.json", context_length=context_length)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return tokenizer_from_vocabulary(folder / "vocab.json", folder / "merges.txt", context_length=context_length)
    if (folder / MERGES).is_file():
        return tokenizer_from_merges(folder / MERGES, context_length=context_length)
    return fetched_tokenizer(context_length=context_length)


def fetched_tokenizer(*, context_length: int = 77) -> ClipTokenizer:
    """CLIP's published vocabulary, once fetched.

    Raises:
        UserError: If it has not been fetched.
    """
    from polyfuse.data.fetch import path_of

    folder = path_of(FETCHED)
    if folder is None:
        raise UserError(f"CLIP's vocabulary is not in the cache; run: polyfuse weights fetch {FETCHED}")
    return tokenizer_from_merges(folder / MERGES, context_length=context_length)


def tokenizer_from_merges(path: Path, *, context_length: int = 77, vocab_size: int = _VOCABULARY) -> ClipTokenizer:
    """From a file of merges, one a line behind a first line of comment, gzipped or not.

    Ids are: the 256 bytes, the 256 bytes at the end of a word, the merges in their order, start, end.

    Args:
        path: The file.
        context_length: Length of a row.
        vocab_size: Ids before the two special ones: what is left of the file is not part of CLIP.

    Raises:
        UserError: If the file is not one of merges.
    """
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as a file of merges: {error}") from None
    merges = [tuple(line.split()) for line in lines[1 : vocab_size - 512 + 1] if line.strip()]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    if wrong is not None:
        raise UserError(f"'{path}' must hold two symbols a line, got {' '.join(wrong)!r}")
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    vocabulary = {name: index for index, name in enumerate([*names, _BEGIN[0], _END[0]])}
    return _built(vocabulary, merges, path, context_length)


def tokenizer_from_vocabulary(vocabulary: Path, merges: Path, *, context_length: int = 77) -> ClipTokenizer:
    """From ``vocab.json`` and ``merges.txt``.

    Raises:
        UserError: If the files are not what they should be.
    """
    try:
        ids, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"'{vocabulary}' and '{merges.name}' cannot be read as a vocabulary: {error}") from None
    return _built(ids, pairs, vocabulary, context_length)


def tokenizer_from_json(path: Path, *, context_length: int = 77) -> ClipTokenizer:
    """From ``tokenizer.json``, whatever it says of padding and truncation.

    Raises:
        UserError: If the file is not a tokenizer, or not CLIP's.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"'{path}' cannot be read as a tokenizer: {error}") from None
    return _finished(tokenizer, path, context_length)


def _built(vocabulary: dict[str, int], merges: Sequence[Any], path: Path, context_length: int) -> ClipTokenizer:
    end = next((name for name in _END if name in vocabulary), None)
    try:
        model = models.BPE(
            vocabulary, list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end
        )
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"'{path}' is no vocabulary for byte-pair encoding: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _finished(tokenizer, path, context_length)


def _finished(tokenizer: Tokenizer, path: Path, context_length: int) -> ClipTokenizer:
    ids: list[int] = []
    for names in (_BEGIN, _END):
        found = [place for name in names if (place := tokenizer.token_to_id(name)) is not None]
        if not found:
            raise UserError(f"'{path}' must have a token {names[0]}, got a vocabulary without: it is not CLIP's")
        ids.append(found[0])
    return ClipTokenizer(tokenizer, begin_id=ids[0], end_id=ids[1], context_length=context_length)


def _byte_letters() -> list[str]:
    """One printable letter per byte, as GPT-2 chose them: printable bytes first, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(0x100 + index) for index in range(others)]
