"""Regions come from the pixels and say how sure they are; sounds carry the pitch of what is there."""

import numpy as np
import pytest

from polyfuse.data.scenes import SceneConfig, make_scenes
from polyfuse.data.scenes_regions import thumbnails
from polyfuse.data.scenes_sounds import BEATS, PITCH


def test_thumbnails_are_the_pixels_of_the_box() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.5, 0.75, 0.9], [0.5, 0.1, 0.65, 0.2]])
    got = thumbnails(images, np.array([2, 0, 1]), boxes, 5)
    for b, scene in enumerate((2, 0, 1)):
        x0, y0, x1, y1 = boxes[b] * 40
        for row in range(5):
            for column in range(5):
                four = []
                for down, across in ((0.5, 0.5), (0.5, 1.5), (1.5, 0.5), (1.5, 1.5)):
                    y = int(y0 + (2 * row + down) / 10 * (y1 - y0))
                    x = int(x0 + (2 * column + across) / 10 * (x1 - x0))
                    four.append(images[scene, y, x])
                np.testing.assert_allclose(got[b, row, column], np.mean(four, axis=0) / 255, rtol=1e-5)


def test_regions_see_pixels_and_not_the_truth() -> None:
    scenes = make_scenes(53)
    regions = scenes.regions()
    assert regions.features.shape == (53, 4, 192)
    assert regions.classes.shape == (53, 4, 6)
    assert (regions.mask == (scenes.shape >= 0)).all()
    for array in (regions.features, regions.boxes, regions.classes):
        assert array.dtype == np.float32
        assert not array[~regions.mask].any()
    np.testing.assert_array_equal(regions.boxes[regions.mask], scenes.boxes[regions.mask])
    dark = scenes.take(range(53))
    dark.images[:] = 0
    assert not dark.regions().features.any()


def test_what_the_detector_believes_is_calibrated() -> None:
    scenes = make_scenes(3000)
    regions = scenes.regions()
    belief, truth = regions.classes[regions.mask], scenes.shape[regions.mask]
    np.testing.assert_allclose(belief.sum(axis=1), 1, rtol=1e-5)
    right, sure = belief.argmax(axis=1) == truth, belief.max(axis=1)
    assert 0.87 < right.mean() < 0.94
    for low, high in ((0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        of = (sure >= low) & (sure < high)
        assert of.sum() > 100
        assert abs(right[of].mean() - sure[of].mean()) < 4 * np.sqrt(0.25 / of.sum())
    assert (scenes.regions(noise=0.1).classes.argmax(axis=2) == scenes.shape)[regions.mask].all()


def test_sounds_have_the_pitch_the_loudness_and_the_beat() -> None:
    scenes = make_scenes(61, config=SceneConfig(least=1, most=1))
    sounds = scenes.sounds(rate=8000)
    assert sounds.shape == (61, 8000)
    assert sounds.dtype == np.float32
    assert np.abs(sounds).max() <= 1
    spectrum = np.abs(np.fft.rfft(sounds, axis=1))  # of a second: bin = Hz
    for n in range(61):
        pitch = PITCH[scenes.config.shapes[scenes.shape[n, 0]]]
        assert abs(int(spectrum[n].argmax()) - pitch) <= 1
        beat = spectrum[n, round(pitch + BEATS)] / spectrum[n].max()
        assert (beat > 0.3) == (scenes.config.materials[scenes.material[n, 0]] == "striped")
    loud = np.abs(sounds).max(axis=1)
    assert loud[scenes.size[:, 0] == 1].min() > 1.5 * loud[scenes.size[:, 0] == 0].max()


def test_misuse_is_refused() -> None:
    scenes = make_scenes(2)
    with pytest.raises(ValueError, match="got 0 and"):
        scenes.regions(grid=0)
    with pytest.raises(ValueError, match="got 1000"):
        scenes.sounds(rate=1000)
