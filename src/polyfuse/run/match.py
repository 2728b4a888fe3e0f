"""`polyfuse match`: which of these texts goes with which of these pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.problems import Broken
from polyfuse.errors import UserError, require
from polyfuse.run.matchers import Matcher, load_matcher
from polyfuse.run.source import Say, quiet

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
TOP = 5
_AT_ONCE = 32


@dataclass(frozen=True)
class Matches:
    """Cosines of I pictures with C texts, and what follows from them.

    Attributes:
        model: What answered.
        scale: What cosines were multiplied by before the softmax.
        images: Paths of the pictures that could be read.
        texts: The texts.
        cosines: ``(I, C)`` float32.
        unreadable: Path and reason of the others.
    """

    model: str
    scale: float
    images: list[str]
    texts: list[str]
    cosines: np.ndarray
    unreadable: list[tuple[str, str]]

    @property
    def probabilities(self) -> np.ndarray:
        """``(I, C)``: the softmax over the texts of scale times cosine; every row sums to 1."""
        logits = self.scale * self.cosines.astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return shares / shares.sum(axis=1, keepdims=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "scale": self.scale,
            "texts": self.texts,
            "images": [
                {"image": name, "best": self.texts[int(row.argmax())], "probabilities": row.tolist(), "cosines": c}
                for name, row, c in zip(self.images, self.probabilities, self.cosines.tolist(), strict=True)
            ],
            "unreadable": [{"image": name, "reason": reason} for name, reason in self.unreadable],
        }

    def text(self, top: int = TOP) -> str:
        """A block per picture, best text first; what was not readable at the end."""
        lines = []
        for name, shares, cosines in zip(self.images, self.probabilities, self.cosines, strict=True):
            lines.append(name)
            order = np.argsort(-shares, kind="stable")[:top]
            lines += [f"  {100 * shares[i]:5.1f} %  cosine {cosines[i]:+.3f}  {self.texts[i]}" for i in order]
            if len(self.texts) > top:
                rest = len(self.texts) - top
                lines.append(f"  {100 * (1 - shares[order].sum()):5.1f} %  {rest} other{'s' if rest > 1 else ''}")
        if self.images:
            lines += ["", f"model: {self.model}, cosines times {self.scale:.1f}"]
        if self.images and len(self.texts) == 1:
            lines.append("One text: its probability is 100 % whatever the picture; look at the cosine.")
        if self.unreadable:
            lines += [*([""] if lines else []), f"not readable: {len(self.unreadable)}"]
            lines += [f"  {name}: {reason}" for name, reason in self.unreadable]
        return "\n".join(lines)


def match_files(images: Sequence[Path], texts: Sequence[str], *, model: str | None = None, say: Say = quiet) -> Matches:
    """Match every picture with every text.

    Args:
        images: Files, or folders: of a folder every picture file directly in it.
        texts: What to choose from.
        model: A folder of weights (CLIP or MobileCLIP in any published layout, or one of ours), or ``clipart`` or
            ``glyphs``, the models that ship; None = ``clipart``.
        say: Told what cannot be read.

    Raises:
        UserError: If there is no picture, no text, or no such model.
    """
    require("PIL", extra="workbench")
    wanted = [text for text in texts if text.strip()]
    if not wanted:
        raise UserError("give at least one text that is not empty: --texts 'a cycling race' 'two cats'")
    files, unreadable = _files(images)
    if not files and not unreadable:
        raise UserError(
            f"no pictures in {', '.join(map(str, images)) or 'nothing'}; known endings: {' '.join(ENDINGS)}"
        )
    matcher = load_matcher(model)
    kept, blocks = [], []
    for start in range(0, len(files), _AT_ONCE):
        read = []
        for path in files[start : start + _AT_ONCE]:
            try:
                read.append(_read(matcher, path))
                kept.append(str(path))
            except Broken as broken:
                unreadable.append((str(path), f"{broken.kind} ({broken.detail})" if broken.detail else broken.kind))
        if read:
            blocks.append(matcher.embed_images(read))
    for name, reason in unreadable:
        say(f"match: {name}: {reason}")
    for text in wanted:
        unknown = matcher.unknown_words(text)
        if unknown:
            say(f"match: {matcher.name} does not know {', '.join(map(repr, unknown))} of {text!r} and leaves it out")
    words = matcher.embed_texts(wanted)
    pictures = np.concatenate(blocks) if blocks else np.zeros((0, words.shape[1]), dtype=np.float32)
    return Matches(matcher.name, matcher.scale, kept, wanted, pictures @ words.T, unreadable)


def _files(images: Iterable[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Files in the order given, folders opened; and what is not there."""
    files: list[Path] = []
    missing = []
    for path in images:
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
        elif path.is_file():
            files.append(path)
        else:
            missing.append((str(path), "missing file"))
    return list(dict.fromkeys(files)), missing


def _read(matcher: Matcher, path: Path) -> Any:
    from polyfuse.data.codecs_image import strict_pil

    if path.stat().st_size == 0:
        raise Broken("zero bytes")
    try:
        with strict_pil():
            return matcher.read(path)
    except OSError as error:
        raise Broken("unreadable", error.strerror or str(error)) from None
