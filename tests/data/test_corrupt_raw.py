"""Raw corruption: levels grow, absent rows stay, draws belong to the row, nothing but the content changes."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfuse.data import corrupt_raw
from polyfuse.data.corrupt_raw import (
    AUDIO_KINDS,
    GAP_BLOCKS,
    GAP_SHARES,
    IMAGE_KINDS,
    JPEG_QUALITIES,
    LEVELS,
    NOISE_DECIBELS,
    SQUARE_SIDES,
    corrupt_audio,
    corrupt_images,
    corrupt_texts,
)

B, S, N = 7, 37, 1999
KEYS = torch.arange(B) * 7919 + 3
WORDS = ["the quick brown fox", "jumped over", "", "a lazy dog", "aa bb", "42 été", "one two three four five six seven"]


def pictures() -> Tensor:
    """Smooth colour, with a hard edge."""
    line = torch.linspace(0, 1, S)
    phase = torch.arange(B * 3).view(B, 3, 1, 1)
    wave = torch.sin(9 * line[:, None] * line + phase) * 90 + 120
    return torch.where(line > 0.6, 255 - wave, wave).to(torch.uint8)


def recordings() -> dict[str, Tensor]:
    length = torch.tensor([N, 1600, 997, 400, 211, 0, 1777])
    time = torch.arange(N)
    wave = torch.sin(time * (0.05 + 0.03 * torch.arange(B)[:, None])) * (2000 + 2500 * torch.arange(B)[:, None])
    return {"wave": wave.masked_fill(time >= length[:, None], 0).to(torch.int16), "length": length}


def broken(form: str, kind: str, level: int, rows: Tensor, **options: Any) -> Tensor:
    if form == "image":
        return corrupt_images(pictures()[rows], kind, level, KEYS[rows], **options)
    clips = recordings()
    if kind == "noise":
        options = {"noise": clips, "noise_keys": KEYS, **options}
    out = corrupt_audio({k: v[rows] for k, v in clips.items()}, kind, level, KEYS[rows], **options)
    assert torch.equal(out["length"], clips["length"][rows])
    return out["wave"]


def clean(form: str) -> Tensor:
    return pictures() if form == "image" else recordings()["wave"]


CASES = [("image", kind) for kind in IMAGE_KINDS] + [("audio", kind) for kind in AUDIO_KINDS]
ALL = torch.arange(B)


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_every_level_is_further_from_the_original(form: str, kind: str) -> None:
    original = clean(form)
    distances = [torch.zeros(B)]
    for level in LEVELS:
        out = broken(form, kind, level, ALL)
        assert out.dtype == original.dtype
        assert out.shape == original.shape
        distances.append((out.float() - original.float()).abs().flatten(1).mean(1))
    heard = torch.ones(B, dtype=torch.bool) if form == "image" else recordings()["length"] > 0
    for lower, higher in pairwise(distances):
        assert bool((higher >= lower).all())
        assert higher[heard].mean() > 1.1 * lower[heard].mean()


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_a_row_is_broken_alike_in_any_batch_and_absent_rows_stay(form: str, kind: str) -> None:
    whole = broken(form, kind, 2, ALL)
    order = torch.tensor([4, 0, 6])
    assert torch.equal(broken(form, kind, 2, order), whole[order])
    present = torch.tensor([True, False, True, False, True, True, False])
    part = broken(form, kind, 2, ALL, present=present)
    assert torch.equal(part[present], whole[present])
    assert torch.equal(part[~present], clean(form)[~present])
    if kind not in ("blur", "compression", "clipping"):
        assert not torch.equal(broken(form, kind, 2, ALL, seed=1), whole)


def test_blur_keeps_flat_pictures_and_smooths_edges() -> None:
    flat = torch.full((1, 3, S, S), 77, dtype=torch.uint8)
    assert torch.equal(corrupt_images(flat, "blur", 3, KEYS[:1]), flat)
    edge = (torch.arange(S) > 17).to(torch.uint8).mul(200).expand(1, 3, S, S)
    steps = [corrupt_images(edge, "blur", level, KEYS[:1]).float().diff(dim=3).abs().amax().item() for level in LEVELS]
    assert 200 > steps[0] > steps[1] > steps[2] > 0


def test_fog_takes_contrast_and_rain_is_grey() -> None:
    original = pictures().float().std(dim=(1, 2, 3))
    for level in LEVELS:
        assert bool((broken("image", "fog", level, ALL).float().std(dim=(1, 2, 3)) < original).all())
    changed = broken("image", "rain", 2, ALL).float() - pictures().float()
    toward = corrupt_raw.RAIN_GREY - pictures().float()
    hit = changed.abs() > 1
    assert bool((changed[hit] * toward[hit] > 0).all())
    assert 0.02 < hit.float().mean() < 0.6


def test_compression_is_the_jpeg_of_that_quality() -> None:
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pictures()[3].permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=JPEG_QUALITIES[1])
    expected = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)
    assert torch.equal(broken("image", "compression", 2, ALL)[3], expected)


def test_occlusion_hides_one_square() -> None:
    white = torch.full((B, 3, S, S), 255, dtype=torch.uint8)
    for level in LEVELS:
        grey = corrupt_images(white, "occlusion", level, KEYS) == 127
        side = round(SQUARE_SIDES[level - 1] * S)
        assert (grey.sum(dim=(2, 3)) == side * side).all()
        assert (grey.any(dim=2).sum(dim=2) == side).all()


def test_noise_is_another_recording_at_the_stated_power() -> None:
    clips = recordings()
    for level, decibels in zip(LEVELS, NOISE_DECIBELS, strict=True):
        quiet = {"wave": clips["wave"] // 8, "length": clips["length"]}
        out = corrupt_audio(quiet, "noise", level, KEYS)["wave"].double()
        for row in (0, 1, 2, 6):
            own = quiet["wave"][row, : int(clips["length"][row])].double()
            added = out[row, : len(own)] - own
            ratio = 10 * torch.log10(own.square().mean() / added.square().mean())
            assert ratio.item() == pytest.approx(decibels, abs=0.3)
            alike = torch.corrcoef(torch.stack([own, added]))[0, 1]
            assert abs(alike) < 0.9  # never the clip itself


def test_gaps_are_whole_blocks() -> None:
    clips = {"wave": torch.full((50, 200), 100, dtype=torch.int16), "length": torch.full((50,), 200)}
    for level, share in zip(LEVELS, GAP_SHARES, strict=True):
        wave = corrupt_audio(clips, "gaps", level, torch.arange(50))["wave"].view(50, GAP_BLOCKS, 10)
        assert torch.equal(wave.amax(2), wave.amin(2))
        assert (wave[..., 0] == 0).float().mean().item() == pytest.approx(share, abs=0.05)


def test_typos_swap_letters_inside_words_and_grow() -> None:
    before = [0] * B
    for level in LEVELS:
        out = corrupt_texts(WORDS, level, KEYS)
        assert [sorted(a) for a in out] == [sorted(b) for b in WORDS]
        assert [len(word) for text in out for word in text.split(" ")] == [len(w) for t in WORDS for w in t.split(" ")]
        now = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in zip(out, WORDS, strict=True)]
        assert all(a >= b for a, b in zip(now, before, strict=True))
        assert sum(now) > sum(before)
        before = now
        assert corrupt_texts(WORDS[3:], level, KEYS[3:]) == out[3:]
    assert out[4] == "aa bb"  # nothing to swap
    assert out[5].startswith("42 ")
    assert all(a != b for a, b in zip(out[0].split(), WORDS[0].split(), strict=True))
    assert corrupt_texts(WORDS, 2, KEYS, seed=1) != corrupt_texts(WORDS, 2, KEYS)


def test_wrong_requests_are_told() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of blur, .*got 'snow'"):
        corrupt_images(pictures(), "snow", 1, KEYS)
    with pytest.raises(ValueError, match="level must be 1, 2 or 3, got 4"):
        corrupt_images(pictures(), "blur", 4, KEYS)
    with pytest.raises(ValueError, match=r"keys must be \(B,\) = \(7,\), got \(3,\)"):
        corrupt_images(pictures(), "blur", 1, KEYS[:3])
    with pytest.raises(ValueError, match=r"present must be bool.*got torch.int64"):
        corrupt_images(pictures(), "blur", 1, KEYS, present=ALL)
    with pytest.raises(ValueError, match=r"pixels must be uint8.*got torch.float32"):
        corrupt_images(pictures().float(), "blur", 1, KEYS)
    with pytest.raises(ValueError, match=r"clips must hold wave int16.*got torch.float32"):
        corrupt_audio({"wave": torch.zeros(2, 9), "length": torch.ones(2)}, "gaps", 1, KEYS[:2])
    with pytest.raises(ValueError, match="noise and noise_keys must be given together"):
        corrupt_audio(recordings(), "noise", 1, KEYS, noise=recordings())
    with pytest.raises(ValueError, match="a recording of another row, got none"):
        corrupt_audio({k: v[:1] for k, v in recordings().items()}, "noise", 1, KEYS[:1])
