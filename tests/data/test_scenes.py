"""The scenes themselves: deterministic, held to their configuration, drawn where their boxes say."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from polyfuse.data.scenes import SceneConfig, combinations_held_out, make_scenes
from polyfuse.data.scenes_config import COLOURS, MATERIALS, SHAPES, SIZES, held_out_table
from polyfuse.data.scenes_layout import Layout
from polyfuse.data.scenes_render import draw

EVERYTHING = SceneConfig(
    shapes=SHAPES, colours=tuple(COLOURS), sizes=tuple(SIZES), materials=MATERIALS, least=3, most=5
)


def test_a_scene_depends_on_its_number_alone() -> None:
    many, few = make_scenes(13, seed=3), make_scenes(5, seed=3, start=7)
    for name in ("images", "count", "shape", "colour", "size", "material", "boxes", "centres"):
        np.testing.assert_array_equal(getattr(many, name)[7:12], getattr(few, name))
    assert many.captions(seed=5)[7:12] == few.captions(seed=5)
    assert many.references()[7:12] == few.references()
    asked, again = many.questions(3, seed=2), few.questions(3, seed=2)
    rows = np.flatnonzero((asked.scene >= 7) & (asked.scene < 12))
    assert [asked.text[r] for r in rows] == again.text
    assert [asked.answer[r] for r in rows] == again.answer
    assert many.take([8]).phrases().text == few.take([1]).phrases().text
    np.testing.assert_array_equal(many.regions().classes[7:12], few.regions().classes)
    np.testing.assert_array_equal(many.sounds()[7:12], few.sounds())


def test_seeds_and_splits_differ() -> None:
    base = make_scenes(7)
    assert not np.array_equal(base.images, make_scenes(7, seed=1).images)
    for split in ("validation", "test", "novel"):
        assert not np.array_equal(base.images, make_scenes(7, split=split).images)
    assert base.captions(0) != base.captions(1)
    assert base.questions(seed=0).text != base.questions(seed=1).text


def test_arrays_have_the_shapes_they_state() -> None:
    scenes = make_scenes(11, config=SceneConfig(side=48, most=5))
    assert scenes.images.shape == (11, 48, 48, 3)
    assert scenes.images.dtype == np.uint8
    assert scenes.boxes.shape == (11, 5, 4)
    assert scenes.boxes.dtype == np.float32
    here = np.arange(5) < scenes.count[:, None]
    for name, size in (("shape", 6), ("colour", 8), ("size", 2), ("material", 2)):
        values = getattr(scenes, name)
        assert values.dtype == np.int64
        assert ((values >= 0) == here).all()
        assert values.max() < size
    assert (np.isfinite(scenes.boxes).all(axis=2) == here).all()


def test_held_out_combinations_stand_in_novel_scenes_only() -> None:
    config = SceneConfig()
    held = held_out_table(config)
    assert len(combinations_held_out(config)) == 6 == held.sum()
    assert held.sum(axis=0).max() == 1  # spread over the shapes and over the colours
    assert held.sum(axis=1).max() == 1
    for split in ("train", "validation", "test", "novel"):
        scenes = make_scenes(300, split=split)
        shown = held[scenes.colour, scenes.shape] & (scenes.shape >= 0)
        assert shown.any(axis=1).all() == shown.any() == (split == "novel")
    named = SceneConfig(held_out=(("red", "ring"), ("blue", "star")))
    assert combinations_held_out(named) == (("red", "ring"), ("blue", "star"))
    with pytest.raises(ValueError, match="novel"):
        make_scenes(3, split="novel", config=SceneConfig(held_out=0.0))


def test_every_value_is_drawn_about_equally_often() -> None:
    scenes = make_scenes(2000)
    for name, size in (("shape", 6), ("colour", 8), ("size", 2), ("material", 2)):
        values = getattr(scenes, name)
        share = np.bincount(values[values >= 0], minlength=size) / (values >= 0).sum()
        np.testing.assert_allclose(share, 1 / size, rtol=0.15)
    np.testing.assert_allclose(np.bincount(scenes.count)[2:] / 2000, 1 / 3, rtol=0.15)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_boxes_are_tight_around_what_is_seen(overlap: float) -> None:
    """Each object is drawn again, alone and then with all that lies on it, and its pixels looked for."""
    config = SceneConfig(least=3, most=4, overlap=overlap, materials=("plain",), colours=("red", "white", "cyan"))
    scenes = make_scenes(23, config=config)
    covered = 0
    for n in range(len(scenes)):
        order = np.argsort(-np.nan_to_num(scenes.radii[n]), kind="stable")[: scenes.count[n]]
        for rank, k in enumerate(order):
            seen = alone(scenes, n, k)
            whole = seen.sum()
            for over in order[rank + 1 :]:
                seen &= ~alone(scenes, n, over)
            covered += whole > seen.sum()
            assert seen.sum() > 0.2 * whole
            y, x = np.nonzero(seen)
            box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / config.side
            np.testing.assert_allclose(scenes.boxes[n, k], box, atol=1e-6)
    assert (covered > 0) == (overlap > 0)


def alone(scenes: object, n: int, k: int) -> np.ndarray:
    """Where object k fills at least half of a pixel: painted white on black by itself, at the turn it has there."""
    from polyfuse.data.scenes_draws import uniform

    assert hasattr(scenes, "shape")
    config = scenes.config
    turn = np.deg2rad(config.turn) * (
        2 * uniform(scenes.seed, "train/look", scenes.index[n : n + 1], 4 * config.most) - 1
    )
    one = Layout(
        np.array([1]), *(getattr(scenes, name)[n : n + 1, k : k + 1] for name in
        ("shape", "colour", "size", "material", "centres", "radii"))
    )  # fmt: skip
    black = np.zeros((1, config.side, config.side, 3), dtype=np.uint8)
    image, _ = draw(config, one, black, np.full((1, 1, 3), 255.0), turn[:, 3 * config.most + k][:, None])
    return image[0, :, :, 0] >= 128


def test_pixels_show_the_colours_and_sizes_that_are_said() -> None:
    scenes = make_scenes(29, config=SceneConfig(materials=("plain",), shapes=("circle", "square"), turn=0))
    for n, k in np.argwhere(scenes.shape >= 0):
        x0, y0, x1, y1 = np.rint(scenes.boxes[n, k] * 64).astype(int)
        middle = scenes.images[n, (y0 + y1) // 2, (x0 + x1) // 2].astype(int)
        apart = [np.abs(middle - COLOURS[c]).sum() for c in scenes.config.colours]
        assert np.argmin(apart) == scenes.colour[n, k]
        large = scenes.config.sizes[scenes.size[n, k]] == "large"
        assert (15 <= x1 - x0 <= 21) if large else (7 <= x1 - x0 <= 11)


def test_shapes_and_materials_can_be_told_apart() -> None:
    """Small, without a turn, in one place: any two of the 27 pictures differ by seven whole pixels at least."""
    pairs = [(s, m) for s in range(len(SHAPES)) for m in range(len(MATERIALS))]
    shape, material = np.array(pairs).T[:, :, None]
    rows = len(pairs)
    layout = Layout(
        np.ones(rows, dtype=int), shape, shape * 0, shape * 0, material,
        np.full((rows, 1, 2), 0.5), np.full((rows, 1), SIZES["small"]),
    )  # fmt: skip
    images, _ = draw(
        EVERYTHING,
        layout,
        np.zeros((rows, 64, 64, 3), dtype=np.uint8),
        np.full((rows, 1, 3), 200.0),
        np.zeros((rows, 1)),
    )
    grey = images[..., 0].astype(float) / 200
    for a in range(rows):
        for b in range(a):
            assert np.abs(grey[a] - grey[b]).sum() > 7, (pairs[a], pairs[b])


def test_arguments_change_what_they_say() -> None:
    plain = make_scenes(31)
    assert len(np.unique(plain.images[0].reshape(-1, 3), axis=0)) < 2000
    corner = {
        name: make_scenes(31, config=SceneConfig(background=name)).images[:, 0]
        for name in ("plain", "gradient", "noise")
    }
    assert (np.ptp(corner["plain"][:, :, 0].astype(int), axis=1) == 0).mean() > 0.9  # an object may touch the edge
    assert (np.ptp(corner["gradient"].astype(int), axis=1).max(axis=1) > 3).mean() > 0.8
    assert (np.ptp(corner["noise"].astype(int), axis=1).min(axis=1) > 40).all()

    def nearest(overlap: float) -> float:
        scenes = make_scenes(200, config=SceneConfig(overlap=overlap, least=4))
        apart = np.hypot(*np.moveaxis(scenes.centres[:, :, None] - scenes.centres[:, None], 3, 0))
        need = scenes.radii[:, :, None] + scenes.radii[:, None]
        return float((apart / need)[:, ~np.eye(4, dtype=bool)].min())

    assert nearest(0.0) > 1
    assert 0.5 <= nearest(0.5) < 0.8

    def repeated(repeat: float) -> float:
        scenes = make_scenes(300, config=SceneConfig(repeat=repeat))
        return float((scenes.colour[:, 0] == scenes.colour[:, 1]).mean())

    assert repeated(0.0) < 0.2 < 0.6 < repeated(0.8)
    assert set(make_scenes(50, config=SceneConfig(least=1, most=6)).count) == {1, 2, 3, 4, 5, 6}
    assert make_scenes(0).images.shape == (0, 64, 64, 3)


def test_configuration_goes_through_json() -> None:
    for config in (EVERYTHING, SceneConfig(held_out=(("red", "star"),))):
        assert SceneConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"shapes": ("circle", "blob")}, "blob"),
        ({"colours": ("red", "red")}, "different names"),
        ({"sizes": ()}, "sizes"),
        ({"background": "sky"}, "sky"),
        ({"least": 5}, "least must lie between 1 and 4, got 5"),
        ({"overlap": 0.9}, "overlap"),
        ({"side": 8}, "side"),
        ({"held_out": 1.5}, "1.5"),
        ({"held_out": 0.9}, "nothing to train on"),
        ({"held_out": (("pink", "star"),)}, "pink star"),
    ],
)
def test_configurations_that_cannot_be_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SceneConfig(**arguments)  # type: ignore[arg-type]


def test_misuse_of_make_scenes_is_refused() -> None:
    with pytest.raises(ValueError, match="training"):
        make_scenes(3, split="training")
    with pytest.raises(ValueError, match="-1"):
        make_scenes(-1)
    with pytest.raises(ValueError, match="no room for 12 objects"):
        make_scenes(3, config=SceneConfig(least=12, most=12, sizes=("large",)))
