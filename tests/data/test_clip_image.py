"""CLIP's preprocessing against PIL and numpy written out, and against transformers' own."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from polyfuse.data.clip_image import CLIP_MEAN, CLIP_STD, ImageSettings, settings_from_hf, settings_from_open_clip
from polyfuse.data.problems import Broken


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(61, 37), (37, 64), (29, 29), (11, 17), (1, 1), (23, 1)])
def test_equal_to_the_steps_written_out(width: int, height: int) -> None:
    image, side = picture(width, height), 29
    short = min(width, height)
    new = (int(side * width / short), int(side * height / short))
    seen = np.asarray(image.resize(new, Image.Resampling.BICUBIC), dtype=np.float64)
    top, left = round((new[1] - side) / 2), round((new[0] - side) / 2)
    seen = seen[top : top + side, left : left + side] / 255
    if max(width, height) / short > 16:  # only the middle of a line is resized: the same to the pixel here
        assert np.ptp(seen, axis=0).max() == 0
        image = picture(width, height).crop((3, 0, 19, 1))
        wide = np.asarray(image.resize((16 * side, side), Image.Resampling.BICUBIC), dtype=np.float64)
        seen = wide[:, round(7.5 * side) : round(7.5 * side) + side] / 255
    expected = (seen - np.array([0.48145466, 0.4578275, 0.40821073])) / np.array([0.26862954, 0.26130258, 0.27577711])
    got = ImageSettings(size=side).pixels(image)
    assert got.shape == (3, side, side)
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(61, 37), (37, 64), (29, 32), (11, 17)])
@pytest.mark.parametrize("changes", [{}, {"resample": 2, "do_normalize": False}, {"size": {"shortest_edge": 31}}])
def test_equal_to_transformers(width: int, height: int, changes: dict[str, object]) -> None:
    config = {"size": {"shortest_edge": 29}, "crop_size": {"height": 29, "width": 29}, **changes}
    expected = CLIPImageProcessorPil(**config)(picture(width, height), return_tensors="pt").pixel_values[0]
    got = settings_from_hf(config, size=29).pixels(picture(width, height))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_the_corner_of_the_crop_is_rounded_as_the_checkpoint_did() -> None:
    image = picture(29, 32)  # three pixels too many: 1.5 is rounded to 2, or cut to 1
    bytes_HWC = np.asarray(image)
    plain = {"size": 29, "mean": (0, 0, 0), "std": (1, 1, 1), "scale": 1.0}
    rounded = ImageSettings(**plain).pixels(image)
    cut = ImageSettings(**plain, round_crop=False).pixels(image)
    assert np.array_equal(rounded.permute(1, 2, 0).numpy(), bytes_HWC[2:31])
    assert np.array_equal(cut.permute(1, 2, 0).numpy(), bytes_HWC[1:30])


def test_mobileclip_settings() -> None:
    config = {"size": [29, 29], "mode": "RGB", "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    settings = settings_from_open_clip({**config, "resize_mode": "shortest"}, size=224)
    image = picture(58, 58)
    expected = np.asarray(image.resize((29, 29), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(settings.pixels(image).permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert settings_from_open_clip({}, size=29) == ImageSettings(size=29)
    assert (ImageSettings().mean, ImageSettings().std, ImageSettings().size) == (CLIP_MEAN, CLIP_STD, 224)


def test_squash_keeps_everything() -> None:
    image = picture(58, 29)
    expected = np.asarray(image.resize((13, 13), Image.Resampling.BICUBIC)) / 255
    for settings in (
        settings_from_open_clip({"resize_mode": "squash", "mean": (0, 0, 0), "std": (1, 1, 1)}, size=13),
        settings_from_hf(
            {"size": {"height": 13, "width": 13}, "crop_size": 13, "do_center_crop": False, "do_normalize": False},
            size=9,
        ),
    ):
        np.testing.assert_allclose(settings.pixels(image).permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_every_mode_of_image(tmp_path: Path) -> None:
    settings = ImageSettings(size=13, mean=(0, 0, 0), std=(1, 1, 1))
    base = picture(17, 13)
    expected = settings.pixels(base)
    grey = settings.pixels(base.convert("L"))
    assert torch.equal(grey[0], grey[2])
    few = base.quantize(4)
    torch.testing.assert_close(settings.pixels(few), settings.pixels(few.convert("RGB")))
    clear = base.convert("RGBA")
    clear.putalpha(0)
    assert (settings.pixels(clear) == 1).all()  # nothing but the white ground
    clear.putalpha(255)
    assert torch.equal(settings.pixels(clear), expected)
    assert torch.equal(settings.pixels(np.asarray(base)), expected)
    assert settings.pixels(np.asarray(base.convert("L"))).shape == (3, 13, 13)
    turned, path = base.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(path, exif=exif)
    assert torch.equal(settings.pixels(path), expected)
    held = io.BytesIO()
    base.save(held, "PNG")
    assert torch.equal(settings.pixels(held.getvalue()), expected)
    assert torch.equal(settings([base, held.getvalue()]), torch.stack([expected, expected]))
    assert settings([]).shape == (0, 3, 13, 13)


def test_a_line_of_pixels_stays_small() -> None:
    assert ImageSettings(size=13).pixels(Image.new("RGB", (40_000, 1))).shape == (3, 13, 13)
    assert ImageSettings(size=13).pixels(Image.new("RGB", (1, 40_000))).shape == (3, 13, 13)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    settings = ImageSettings(size=13)
    (tmp_path / "note.txt").write_text("no image")
    whole = io.BytesIO()
    picture(64, 64).save(whole, "PNG")
    for source, kind in (
        (tmp_path / "absent.png", "missing file"),
        (tmp_path, "directory"),
        (tmp_path / "note.txt", "wrong type"),
        (whole.getvalue()[:-200], "truncated"),
    ):
        with pytest.raises(Broken) as caught:
            settings.pixels(source)
        assert caught.value.kind == kind
    with pytest.raises(TypeError, match=r"got float64 \(3, 3\)"):
        settings.pixels(np.zeros((3, 3)))
    with pytest.raises(TypeError, match="got int"):
        settings.pixels(3)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_center_crop": False}, "got false"),
        ({"size": {"shortest_edge": 9, "longest_edge": 12}}, "one side"),
        ({"size": {"height": 9, "width": 12}}, "one side"),
        ({"size": {"height": 9, "width": 9}, "crop_size": 7}, "got 9 and 7"),
        ({"resample": 9}, "got 9"),
        ({"image_std": [1, 1, 0]}, "std not 0"),
    ],
)
def test_settings_that_are_not_offered_are_refused(config: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        settings_from_hf(config, size=7)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'longest'"):
        settings_from_open_clip({"resize_mode": "longest"}, size=7)
    with pytest.raises(ValueError, match=r"got \[7, 9\]"):
        settings_from_open_clip({"size": [7, 9]}, size=7)
    with pytest.raises(ValueError, match="got 'cubic'"):
        ImageSettings(interpolation="cubic")
    with pytest.raises(ValueError, match="got 7 and 5"):
        ImageSettings(size=7, resize=5)
    with pytest.raises(ValueError, match="got 'fill'"):
        ImageSettings(mode="fill")
