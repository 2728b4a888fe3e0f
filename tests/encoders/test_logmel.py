"""The log-mel against its formula in plain loops."""

import math

import numpy as np
import pytest
import torch

from polyfuse.encoders.audio import AudioCNN, LogMel


def logmel_by_hand(wave: np.ndarray, rate: int, bands: int, window: int, hop: int) -> np.ndarray:
    """Definition by definition: direct Fourier sums, one triangle at a time."""
    mel = [2595 * math.log10(1 + f / 700) for f in (20.0, rate / 2)]
    edges = [700 * (10 ** ((mel[0] + (mel[1] - mel[0]) * k / (bands + 1)) / 2595) - 1) for k in range(bands + 2)]
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    rows = []
    for start in range(0, len(wave) - window + 1, hop):
        frame = wave[start : start + window] * hann
        power = []
        for k in range(window // 2 + 1):
            turn = 2 * math.pi * k * np.arange(window) / window
            power.append((frame * np.cos(turn)).sum() ** 2 + (frame * np.sin(turn)).sum() ** 2)
        row = []
        for low, top, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, p in enumerate(power):
                f = k * rate / window
                if low < f <= top:
                    total += p * (f - low) / (top - low)
                elif top < f < high:
                    total += p * (high - f) / (high - top)
            row.append(math.log(max(total / (window * sum(h * h for h in hann)), 1e-8)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("rate", "bands"), [(4000, 11), (8000, 23), (11025, 17)])
def test_equals_the_formula(rate: int, bands: int) -> None:
    wave = np.random.default_rng(0).normal(0, 0.2, 3 * rate // 50)
    logmel = LogMel(rate, num_mels=bands)
    expected = logmel_by_hand(wave, rate, bands, logmel.window, logmel.hop)
    found = logmel(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape == (logmel.frames(len(wave)), bands)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_tone_lights_its_own_band() -> None:
    logmel = LogMel(16000, num_mels=40)
    second = torch.arange(16000) / 16000
    for hertz in (150.0, 1000.0, 6000.0):
        top = int(logmel(torch.sin(2 * math.pi * hertz * second)[None])[0].mean(dim=0).argmax())
        assert logmel.edges[top] < hertz < logmel.edges[top + 2]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_no_band_is_empty(rate: int) -> None:
    assert (LogMel(rate).triangles().sum(dim=0) > 0.2).all()


def test_too_many_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="got 200 at 8000 Hz"):
        LogMel(8000, num_mels=200)


def test_silence_and_clips_shorter_than_a_frame() -> None:
    logmel = LogMel(8000)
    assert torch.equal(logmel(torch.zeros(2, 50)), torch.full((2, 1, 40), math.log(1e-8)))


def test_loudness_does_not_matter_and_half_precision_keeps_the_spectrum() -> None:
    torch.manual_seed(0)
    encoder = AudioCNN(7, rate=4000, samples=2000, hidden_dim=16).eval()
    wave = (torch.randn(3, 2000) * 3000).round()
    length = torch.tensor([2000, 900, 1500])
    loud, soft = ({"wave": (wave * gain).round().to(torch.int16), "length": length} for gain in (2.0, 1.0))
    torch.testing.assert_close(encoder(loud), encoder(soft), atol=5e-3, rtol=0)
    features, _ = encoder.features(soft["wave"], length)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _ = encoder.features(soft["wave"], length)
    assert torch.equal(features, again)
