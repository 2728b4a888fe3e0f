import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from polyfuse.data.codecs import Reading, restartable
from polyfuse.data.codecs_image import ImageCodec, decode_image, strict_pil
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig

RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def decode(data: bytes | str, size: int = 8, **options: object) -> np.ndarray:
    with strict_pil():
        return decode_image(data, size, **options)


def broken(data: bytes, **options: object) -> Broken:
    with pytest.raises(Broken) as found:
        decode(data, **options)
    return found.value


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""

    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 1000)) + part(b"IEND", b"")


def test_same_size_is_exact_and_channels_first(tmp_path: Path) -> None:
    image = noise(16, 16)
    image.save(tmp_path / "a.png")
    codec = ImageCodec("photo", ("path",), size=16)
    out = codec.encode([["a.png", None]], Reading(tmp_path))
    np.testing.assert_array_equal(out.parts[""][0].transpose(1, 2, 0), np.asarray(image))
    assert not out.parts[""][1].any()
    assert out.present.tolist() == [True, False]
    assert out.parts[""].dtype == np.uint8


def test_crop_keeps_the_middle_and_pad_keeps_all() -> None:
    image = Image.new("RGB", (30, 10), (0, 0, 255))
    image.paste(RED, (10, 0, 20, 10))
    assert (decode(encoded(image), 10)[5, :] == RED).all()
    padded = decode(encoded(image), 30, fit="pad")
    assert (padded[0] == 255).all()
    assert (padded[15, 0] == (0, 0, 255)).all()
    assert (padded[15, 15] == RED).all()


def test_modes() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode(encoded(clear)) == 255).all()  # nothing to see is white, whatever colour hides below
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert (decode(encoded(palette, transparency=0)) == RED).all()
    assert (decode(encoded(Image.new("L", (8, 8), 77))) == 77).all()
    assert (decode(encoded(Image.new("1", (8, 8), 1))) == 255).all()
    assert (decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))[..., 0] > 200).all()
    deep = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert (decode(encoded(deep)) == 0x80).all()
    assert (decode(encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")) == 127).all()


def test_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste(RED, (0, 0, 8, 4))  # red on top
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = decode(encoded(image, exif=exif))
    assert (turned[7] == RED).all()
    assert not turned[0].any()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_absent_at_every_cut(kind: str) -> None:
    data = encoded(noise(64, 64), kind)
    assert decode(data).shape == (8, 8, 3)
    for share in (0.3, 0.6, 0.9):
        found = broken(data[: int(len(data) * share)])
        assert found.kind in ("truncated", "undecodable", "wrong type"), (kind, share)
    assert broken(data[:7]).kind in ("wrong type", "undecodable", "truncated")


def test_kinds_of_broken_files() -> None:
    png, jpeg = encoded(noise(64, 64)), encoded(noise(64, 64), "JPEG")
    assert broken(png[: len(png) // 2]).kind == "truncated"
    assert broken(jpeg[: len(jpeg) // 2]).kind == "truncated"
    assert broken(b"RIFF\0\0\0\0WAVEfmt ").kind == "wrong type"
    assert broken(b"hello, I am a text").kind == "wrong type"
    assert broken(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").kind == "wrong type"  # never to Ghostscript
    assert broken(png[:9]).kind == "undecodable"
    flipped = bytearray(png)
    flipped[40:200] = b"\xff" * 160
    assert broken(bytes(flipped)).kind in ("undecodable", "truncated")


def test_huge_images_are_refused_before_they_are_decoded() -> None:
    found = broken(bomb(30_000))
    assert (found.kind, found.detail) == ("too many pixels", "30000 x 30000, data.max_pixels is 50000000")
    assert broken(encoded(noise(10, 11)), max_pixels=109).kind == "too many pixels"
    assert decode(encoded(noise(10, 11)), max_pixels=110).shape == (8, 8, 3)


def test_the_limit_is_ours_and_pil_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(noise(64, 64))
    assert decode(data).shape == (8, 8, 3)  # PIL alone would warn or refuse
    assert broken(data[: len(data) // 2]).kind == "truncated"  # PIL alone would show half of it
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, True)


def test_pil_switches_are_restored_when_uses_overlap() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with strict_pil():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with strict_pil():
        thread.start()
        entered.wait(10)
    assert Image.MAX_IMAGE_PIXELS is None  # the other one still needs it
    leave.set()
    thread.join()
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_bytes_and_hugging_face_cells(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (8, 8), RED))
    (tmp_path / "a.png").write_bytes(data)
    cells = [data, {"bytes": data, "path": "x.png"}, {"bytes": None, "path": "a.png"}, {"bytes": None}, b"", 7]
    codec = ImageCodec("photo", ("path",), size=8)
    out = codec.encode([cells], Reading(tmp_path))
    assert out.present.tolist() == [True, True, True, False, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(3, "wrong type"), (4, "zero bytes"), (5, "wrong type")]


def test_fit_learns_nothing_but_whether_there_is_any() -> None:
    config = ModalityConfig(type="image", column="p", size=32, fit="pad")
    assert ImageCodec.fit("a", config, restartable([[[None, None]]]), Reading()) is None
    codec = ImageCodec.fit("a", config, restartable([[[None]], [["x.png"]]]), Reading())
    assert codec is not None
    assert (codec.size, codec.fit_mode, codec.columns) == (32, "pad", ("p",))
