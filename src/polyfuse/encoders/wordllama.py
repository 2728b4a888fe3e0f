"""WordLlama: a table of token vectors, averaged over a text. Tiny, quick, English.

Source: https://github.com/dleemiller/WordLlama (vectors distilled from the input embeddings of large language models).
Differs: the mean is not scaled to length 1; a text without tokens is the zero vector.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from polyfuse.encoders.features import digest_of
from polyfuse.errors import UserError, require

_LONGEST = 512


class WordLlama:
    """Mean of the token vectors of a text.

    Args:
        folder: Holds one ``.safetensors`` with one (vocabulary, width) table, and one tokenizer ``.json``.

    Raises:
        UserError: If a file is missing or there are several.
    """

    kind = "text"
    size: int | None = None

    def __init__(self, folder: Path, name: str = "wordllama") -> None:
        table, tokenizer = _only(folder, "*.safetensors"), _only(folder, "*okenizer*.json")
        tensors = load_file(table)
        if len(tensors) != 1:
            raise UserError(f"{table} must hold one table of token vectors, got {sorted(tensors)}")
        (self.table,) = tensors.values()
        self.tokenizer = require("tokenizers", extra="workbench").Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(_LONGEST)
        self.name = name
        self.width = int(self.table.shape[1])
        self.weights_digest = digest_of([table, tokenizer])

    def compute(self, items: Sequence[str]) -> np.ndarray:
        """``(N, width)`` float32."""
        out = np.zeros((len(items), self.width), dtype=np.float32)
        for row, found in enumerate(self.tokenizer.encode_batch(list(items), add_special_tokens=False)):
            if found.ids:
                out[row] = self.table[found.ids].astype(np.float32).mean(axis=0)
        return out


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise UserError(f"{folder} must hold one file '{pattern}', got {[path.name for path in found]}; fetch it again")
    return found[0]
