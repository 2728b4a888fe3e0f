"""Images: any common raster file to a square of bytes, or the reason why not.

A file that ends early, or that has more pixels than allowed, is absent as a whole. A truncated image is never shown
half grey to a model.
"""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, source_of
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec

#: Raster formats only: PIL would hand EPS to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: How files of these formats start.
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_lock = threading.Lock()
_users = 0
_saved: tuple[bool, int | None] = (False, None)


@contextlib.contextmanager
def strict_pil() -> Iterator[None]:
    """PIL's two process-wide switches as this package needs them: no half images; our own pixel limit, not PIL's."""
    global _users, _saved
    with _lock:
        if _users == 0:
            _saved = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _saved


def decode_image(source: str | bytes, size: int, fit: str = "crop", max_pixels: int = 50_000_000) -> np.ndarray:
    """Decode to uint8 ``(size, size, 3)``; transparency on white, EXIF orientation applied. Inside ``strict_pil()``.

    Raises:
        Broken: ``too many pixels``, ``truncated``, ``wrong type`` (not an image) or ``undecodable``.
    """
    small = 2 * size  # a JPEG decodes to about that at once
    return read_image(source, max_pixels, draft=small, then=lambda image: square(image, size, fit))


def read_image(
    source: str | bytes,
    max_pixels: int = 50_000_000,
    *,
    then: Callable[[Image.Image], np.ndarray] = np.asarray,
    draft: int | None = None,
) -> np.ndarray:
    """Decode to RGB, transparency on white, EXIF orientation applied, and hand it to ``then``. Inside ``strict_pil()``.

    Args:
        source: A path, or what a file holds.
        max_pixels: Most pixels, read off the header.
        then: Makes the result; what it raises counts as the image's fault.
        draft: Side from which a JPEG may be decoded at a fraction of its size; None = whole.

    Raises:
        Broken: ``too many pixels``, ``truncated``, ``wrong type`` (not an image) or ``undecodable``.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Broken("too many pixels", f"{width} x {height}, data.max_pixels is {max_pixels}")
            if draft is not None:
                image.draft("RGB", (draft, draft))
            image.load()
            return then(to_rgb(ImageOps.exif_transpose(image)))
    except Broken:
        raise
    except UnidentifiedImageError:
        if _head(source).startswith(MAGIC):
            raise Broken("undecodable", "starts like an image and is none") from None
        raise Broken("wrong type", "not an image") from None
    except MemoryError:
        raise Broken("too many pixels", "out of memory") from None
    except Exception as error:  # PIL's decoders raise whatever they like on a broken file
        text = (str(error).splitlines() or [""])[0][:80] or type(error).__name__
        early = isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "unexpected end"))
        raise Broken("truncated" if early else "undecodable", text) from None


def _head(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    with open(source, "rb") as file:
        return file.read(12)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, 16 bits and floats scaled to 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 else 1.0
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """``(size, size, 3)``: the middle of the picture (``crop``), or all of it on white (``pad``)."""
    if image.size != (size, size):
        method = Image.Resampling.BICUBIC
        if fit == "pad":
            image = ImageOps.pad(image, (size, size), method, color=(255, 255, 255))
        else:
            image = ImageOps.fit(image, (size, size), method)
    return np.asarray(image)


@dataclass
class ImageCodec(Codec):
    """Paths or bytes to uint8 ``(B, 3, S, S)``."""

    size: int = 64
    fit_mode: str = "crop"
    type: ClassVar[str] = "image"

    @property
    def spec(self) -> ModalitySpec:
        """Input ``(B, 3, size, size)``."""
        return ModalitySpec(self.name, "image", {"size": self.size})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "ImageCodec | None":
        """Nothing to learn; None if no training cell is filled."""
        if not any(cell is not None for cells in train() for cell in cells[0]):
            return None
        return cls(name, config.all_columns, size=config.size, fit_mode=config.fit)

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Decode every file."""

        def decode(cell: Any) -> np.ndarray:
            return decode_image(source_of(cell, reading), self.size, self.fit_mode, reading.max_pixels)

        with strict_pil():
            images, problems = decode_cells(cells[0], decode, reading.pool)
        out = self.zeros(len(images))
        present = np.array([image is not None for image in images], dtype=bool)
        for i, image in enumerate(images):
            if image is not None:
                out[""][i] = image.transpose(2, 0, 1)
        return Encoding(out, present, problems)

    def state(self) -> dict[str, Any]:
        """Size and fit."""
        return {"size": self.size, "fit_mode": self.fit_mode}
