"""Clips: what subtitles, tags, captions and sounds say is looked for in the pixels, the places and the samples."""

import itertools
import re

import numpy as np
import pytest

from polyfuse.data.moving_scenes import BURST, TAGS, ClipConfig, Clips, burst, make_clips
from polyfuse.data.scenes_config import COLOURS, held_out_table

DENSE = ClipConfig(frames=97, seconds=2.9)


def name(clips: Clips, n: int, k: int) -> str:
    return f"{clips.config.colours[clips.colour[n, k]]} {clips.config.shapes[clips.shape[n, k]]}"


def test_a_clip_depends_on_its_number_alone() -> None:
    many, few = make_clips(7, seed=2), make_clips(3, seed=2, start=4)
    np.testing.assert_array_equal(many.frames[4:], few.frames)
    np.testing.assert_array_equal(many.sound[4:], few.sound)
    assert many.subtitles[4:] == few.subtitles
    assert many.captions[4:] == few.captions
    assert many.captions != make_clips(7, seed=3).captions
    assert many.captions != make_clips(7, seed=2, split="test").captions


def test_arrays_have_the_shapes_they_state() -> None:
    clips = make_clips(5, config=ClipConfig(side=48, frames=7, seconds=1.5, most=3))
    assert clips.frames.shape == (5, 7, 48, 48, 3)
    assert clips.frames.dtype == np.uint8
    assert clips.sound.shape == (5, 6000)
    assert clips.sound.dtype == np.float32
    assert clips.tags.shape == (5, len(TAGS))
    np.testing.assert_allclose(clips.frame_times, np.arange(7) * 1.5 / 7)
    assert make_clips(0).frames.shape == (0, 12, 32, 32, 3)


def test_pixels_are_where_the_objects_are() -> None:
    clips = make_clips(11, config=ClipConfig(most=1, shapes=("circle", "square", "cross"), held_out=0.0))
    background = np.median(clips.frames.reshape(11, -1, 3), axis=1)
    for n in range(11):
        for f in range(12):
            y, x = np.nonzero(np.abs(clips.frames[n, f].astype(float) - background[n]).sum(axis=2) > 60)
            np.testing.assert_allclose([x.mean() + 0.5, y.mean() + 0.5], clips.centres[n, f, 0] * 32, atol=0.55)
            assert (x.min(), y.min()) >= (0, 0)
            middle = clips.frames[n, f, round(y.mean()), round(x.mean())].astype(int)
            assert np.argmin([np.abs(middle - COLOURS[c]).sum() for c in clips.config.colours]) == clips.colour[n, 0]


def test_subtitles_say_how_objects_move() -> None:
    clips = make_clips(23, config=DENSE)
    axis_sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
    for n, lines in enumerate(clips.subtitles):
        assert lines == sorted(lines)
        heard = set()
        for begin, end, text in lines:
            m = re.fullmatch(r"the (\w+ \w+) moves (left|right|up|down)", text)
            assert m
            (k,) = [k for k in range(2) if clips.shape[n, k] >= 0 and name(clips, n, k) == m[1]]
            heard.add(k)
            inside = (clips.frame_times >= begin) & (clips.frame_times <= end)
            step = np.diff(clips.centres[n, inside, k], axis=0)
            axis, sign = axis_sign[m[2]]
            assert (step[:, axis] * sign > 0).all()
            np.testing.assert_allclose(step[:, 1 - axis], 0, atol=1e-12)
        for k in range(2):  # the lines of an object follow each other from its first frame to the end
            mine = [(a, b) for a, b, t in lines if clips.shape[n, k] >= 0 and f"the {name(clips, n, k)} " in t]
            assert bool(mine) == (clips.shape[n, k] >= 0) == (k in heard)
            if mine:
                seen = clips.frame_times[np.isfinite(clips.centres[n, :, k, 0])]
                assert mine[-1][1] == DENSE.seconds
                assert 0 <= seen[0] - mine[0][0] <= DENSE.seconds / DENSE.frames
                assert all(a[1] == b[0] for a, b in itertools.pairwise(mine))


def test_the_sound_is_heard_when_it_happens() -> None:
    """From silence the first sample of every event's tone is found within a sample of the event."""
    clips, found = make_clips(40, seed=4), 0
    for n, events in enumerate(clips.events):
        times = np.array([e.time for e in events])
        loud = np.abs(clips.sound[n]) > 0
        for e in events:
            if (np.abs(times - e.time) < 2 * BURST).sum() > 1 or e.time + BURST > clips.config.seconds:
                continue
            first = np.flatnonzero(loud[int((e.time - BURST / 2) * 4000) :])[0] + int((e.time - BURST / 2) * 4000)
            assert 0 <= first / 4000 - e.time < 1.001 / 4000
            piece = clips.sound[n, first : first + round(BURST * 4000)]
            scores = {
                (shape, what): float(piece @ (tone := burst(shape, what, 4000)) / np.linalg.norm(tone))
                for shape in clips.config.shapes for what in ("bounces", "appears")
            }  # fmt: skip
            assert max(scores, key=scores.__getitem__) == (clips.config.shapes[clips.shape[n, e.thing]], e.what)
            found += 1
        quiet = np.ones(clips.sound.shape[1], dtype=bool)
        for e in events:
            quiet[int(e.time * 4000) : int((e.time + BURST) * 4000) + 2] = False
        assert not clips.sound[n, quiet].any()
    assert found > 30


def test_bounces_and_appearances_are_seen() -> None:
    clips = make_clips(23, config=DENSE)
    step, bounced = DENSE.seconds / DENSE.frames, 0
    for n, events in enumerate(clips.events):
        assert [e.time for e in events] == sorted(e.time for e in events)
        for k in np.flatnonzero(clips.shape[n] >= 0):
            path = clips.centres[n, :, k]
            seen = np.isfinite(path[:, 0])
            turns = np.diff(np.sign(np.diff(path[seen], axis=0)), axis=0).any(axis=1)
            times = clips.frame_times[seen][1:-1][turns]
            told = [e.time for e in events if e.thing == k and e.what == "bounces"]
            told = [t for t in told if seen.nonzero()[0][0] * step + 2 * step < t < DENSE.seconds - 3 * step]
            assert all(np.abs(times - t).min() <= step for t in told)
            bounced += len(told)
            appeared = [e.time for e in events if e.thing == k and e.what == "appears"]
            assert len(appeared) == (k > 0)
            if appeared:
                assert 0 <= clips.frame_times[seen][0] - appeared[0] <= step
            near = np.abs(path[seen] - np.clip(path[seen], 0.15, 0.85)).max()
            assert near < 0.02
    assert bounced > 20


def test_tags_and_captions_follow_from_what_happens() -> None:
    clips = make_clips(61, config=ClipConfig(most=3))
    for n in range(61):
        said = {t for t, on in zip(clips.tag_names, clips.tags[n], strict=True) if on}
        lines = [text for _, _, text in clips.subtitles[n]]
        for d in ("left", "right", "up", "down"):
            assert (f"moves {d}" in said) == any(text.endswith(d) for text in lines)
        for what in ("bounces", "appears"):
            assert (what in said) == any(e.what == what for e in clips.events[n])
        parts = clips.captions[n].removesuffix(".").split(", then ")
        assert len(parts) == (clips.shape[n] >= 0).sum()
        seen = set()
        for part in parts:
            m = re.fullmatch(
                r"an? (\w+ \w+) (appears and )?moves (left|right|up|down) (slowly|quickly)( and bounces)?", part
            )
            assert m, part
            (k,) = [k for k in range(3) if clips.shape[n, k] >= 0 and name(clips, n, k) == m[1]]
            mine = sorted((a, t) for a, _, t in clips.subtitles[n] if f"the {m[1]} " in t)
            assert mine[0][1].endswith(m[3])
            assert bool(m[5]) == any(e.thing == k and e.what == "bounces" for e in clips.events[n])
            assert bool(m[2]) == (k > 0)
            path = clips.centres[n, np.isfinite(clips.centres[n, :, k, 0]), k]
            pace = np.abs(np.diff(path, axis=0)).sum(axis=1).max() / 0.25
            if len(path) > 3:
                assert (pace > 0.25) == (m[4] == "quickly")
            seen.add(f"moves {m[4]}")
        assert {t for t in said if t.endswith("ly")} == seen
    assert 0.1 < clips.tags.mean(axis=0).min()
    assert clips.tags.mean(axis=0).max() < 0.95


def test_held_out_combinations_stand_in_novel_clips_only() -> None:
    held = held_out_table(ClipConfig().scene())
    for split in ("train", "validation", "test", "novel"):
        clips = make_clips(60, split=split)
        shown = held[clips.colour, clips.shape] & (clips.shape >= 0)
        assert shown.any(axis=1).all() == shown.any() == (split == "novel")


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="holiday"):
        make_clips(1, split="holiday")
    with pytest.raises(ValueError, match="-2"):
        make_clips(1, start=-2)
    with pytest.raises(ValueError, match="1000"):
        ClipConfig(rate=1000)
    with pytest.raises(ValueError, match="got 9"):
        ClipConfig(most=9)
    with pytest.raises(ValueError, match="ClipConfig"):
        make_clips(1, split="novel", config=ClipConfig(held_out=0.0))
