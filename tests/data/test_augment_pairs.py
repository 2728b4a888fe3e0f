"""Augmentations: keyed by row, in range, true to boxes and words; values against plain loops."""

import math

import pytest
import torch

from polyfuse.data.augment_pairs import (
    ImageAugmentation,
    crop_boxes,
    crop_images,
    crop_windows,
    drop_features,
    drop_tokens,
    erase,
    flip_boxes,
    flip_images,
    jitter_colours,
    mix_features,
    names_a_side,
    noisy_features,
)

B, S = 7, 13
FULL = ImageAugmentation(crop=0.4, flip=0.5, colour=(0.3, 0.3, 0.3), erase=0.5)


def pictures(rows: int = B, side: int = S) -> torch.Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(0))


def boxes(rows: int = B) -> torch.Tensor:
    corner = torch.rand(rows, 2, generator=torch.Generator().manual_seed(1)) * 0.6
    return torch.cat([corner, corner + 0.3], dim=1)


def keys(rows: int = B) -> torch.Tensor:
    return torch.arange(rows) * 97 + 5


def test_a_row_is_changed_alike_in_every_batch_and_differently_in_every_epoch() -> None:
    images, where = pictures(), boxes()
    whole, moved = FULL(images, keys(), seed=3, boxes=where)
    for rows in (torch.tensor([4]), torch.tensor([6, 2, 0]), torch.arange(B).flip(0)):
        part, part_boxes = FULL(images[rows], keys()[rows], seed=3, boxes=where[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-6)
        assert torch.equal(part_boxes, moved[rows])
    assert torch.equal(FULL(images, keys(), seed=3, boxes=where)[0], whole)
    for other in (FULL(images, keys(), seed=4, boxes=where)[0], FULL(images, keys(), seed=3, epoch=1, boxes=where)[0]):
        assert (other != whole).flatten(1).any(dim=1).all()
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_nothing_asked_nothing_changed() -> None:
    nothing = ImageAugmentation(crop=None, flip=0.0, colour=(0.0, 0.0, 0.0), erase=0.0)
    images, where = pictures(), boxes()
    same, same_boxes = nothing(images, keys(), seed=0, boxes=where)
    assert same is images
    assert same_boxes is where
    assert nothing(images, keys(), seed=0)[1] is None


def test_an_absent_picture_of_nan_stays_in_its_row() -> None:
    broken = pictures()
    broken[2] = math.nan
    rest = torch.arange(B) != 2
    torch.testing.assert_close(FULL(broken, keys(), seed=3)[0][rest], FULL(pictures(), keys(), seed=3)[0][rest])


def test_windows_have_the_asked_area_and_lie_inside() -> None:
    windows = crop_windows(keys(4001), 0, area=(0.3, 0.6), ratio=(0.8, 1.25))
    assert windows.min() >= 0
    assert windows.max() <= 1 + 1e-6
    width, height = (windows[:, 2:] - windows[:, :2]).unbind(1)
    area = width * height
    assert area.min() > 0.3 - 1e-4
    assert area.max() < 0.6 + 1e-4
    assert area.mean() == pytest.approx(0.45, abs=0.01)
    assert (width / height).log().mean() == pytest.approx(0.0, abs=0.01)
    assert (width / height).min() == pytest.approx(0.8, abs=0.01)


def test_the_box_stays_in_sight() -> None:
    where = boxes(997)
    free, kept = (crop_windows(keys(997), 0, area=(0.1, 0.3), boxes=b) for b in (None, where))

    def seen(windows: torch.Tensor) -> torch.Tensor:
        inside = crop_boxes(where, windows)
        size = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
        return (inside[:, 2:] - inside[:, :2]).prod(dim=1) * size / 0.09

    assert seen(free).min() == 0
    assert seen(kept).min() >= 0.5 - 1e-4
    whole = (kept == torch.tensor([0.0, 0.0, 1.0, 1.0])).all(dim=1)
    assert torch.equal(whole, seen(free) < 0.5)
    assert 0 < whole.float().mean() < 1


def test_a_crop_on_pixel_edges_is_the_slice() -> None:
    images = pictures(1, 8)
    window = torch.tensor([[0.25, 0.5, 0.75, 1.0]])  # columns 2 to 6, rows 4 to 8
    want = torch.nn.functional.interpolate(images[:, :, 4:8, 2:6], size=(8, 8), mode="bilinear", align_corners=False)
    got = crop_images(images, window)
    torch.testing.assert_close(got[:, :, 1:7, 1:7], want[:, :, 1:7, 1:7])  # the rim sees its neighbours outside too
    torch.testing.assert_close(crop_images(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]])), images)


@pytest.mark.parametrize("seed", range(5))
def test_the_box_moves_with_what_it_holds(seed: int) -> None:
    """A bright rectangle on black: after crop and mirror it fills the moved box, and nothing else is bright."""
    side, where = 64, boxes()
    grid = (torch.arange(side) + 0.5) / side
    x0, y0, x1, y1 = (edge[:, None] for edge in where.unbind(1))
    inside = ((grid >= y0) & (grid <= y1))[:, :, None] & ((grid >= x0) & (grid <= x1))[:, None, :]
    images = inside[:, None].float().expand(-1, 3, -1, -1)
    augmentation = ImageAugmentation(crop=0.3, flip=0.5, colour=(0.0, 0.0, 0.0), erase=0.0)
    changed, moved = augmentation(images, keys(), seed=seed, boxes=where)
    assert (moved != where).any(dim=1).sum() > 2
    for picture, box in zip(changed[:, 0], moved, strict=True):
        bright = (picture > 0.5).nonzero()
        edges = torch.cat([bright.amin(0).flip(0), bright.amax(0).flip(0) + 1]) / side
        torch.testing.assert_close(edges, box, rtol=0, atol=2.5 / side)
    regions = torch.stack([where, where.flip(0)], dim=1)
    cropped = crop_boxes(regions, crop_windows(keys(), seed))
    torch.testing.assert_close(cropped[:, 0], crop_boxes(where, crop_windows(keys(), seed)))


def test_flips() -> None:
    images, where, chosen = pictures(), boxes(), torch.arange(B) % 2 == 0
    flipped = flip_images(images, chosen)
    assert torch.equal(flipped[1], images[1])
    assert torch.equal(flipped[2], images[2].flip(-1))
    assert torch.equal(flip_images(flipped, chosen), images)
    torch.testing.assert_close(flip_boxes(flip_boxes(where, chosen), chosen), where)
    assert (flip_boxes(where, chosen)[:, 2:] >= flip_boxes(where, chosen)[:, :2]).all()
    assert torch.equal(flip_boxes(where[:, None], chosen)[:, 0], flip_boxes(where, chosen))


def test_texts_with_sides_are_not_mirrored() -> None:
    texts = [
        "what is LEFT of it?",
        "the rightmost cube",
        "a bright copyright sign",
        "counter-clockwise",
        "",
        "top",
        "left",
    ]
    sides = names_a_side(texts)
    assert sides.tolist() == [True, True, False, True, False, False, True]
    mirror = ImageAugmentation(crop=None, flip=1.0, colour=(0.0, 0.0, 0.0), erase=0.0)
    images = pictures()
    changed, _ = mirror(images, keys(), seed=0, may_flip=~sides)
    assert torch.equal(changed, flip_images(images, ~sides))
    share = ImageAugmentation(crop=None, flip=0.3, colour=(0.0, 0.0, 0.0), erase=0.0)
    many = torch.arange(2.0).expand(3001, 3, 1, 2)
    first, second = (share(many, keys(3001), seed=0, epoch=epoch)[0][:, 0, 0, 0] for epoch in (0, 1))
    assert first.mean() == pytest.approx(0.3, abs=0.03)
    assert (first * second).mean() == pytest.approx(0.09, abs=0.02)  # another epoch mirrors other rows


def test_colours() -> None:
    images = 0.4 + 0.1 * pictures()  # far from the ends: nothing is cut
    bright = jitter_colours(images, keys(), 0, strength=(0.2, 0.0, 0.0)) / images
    factor = bright[:, 0, 0, 0]
    torch.testing.assert_close(bright, factor[:, None, None, None].expand_as(bright))
    assert ((factor - 1).abs() <= 0.2 + 1e-5).all()
    assert len(factor.unique()) == B
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (images * weights).sum(dim=1)
    contrast = jitter_colours(images, keys(), 0, strength=(0.0, 0.2, 0.0))
    torch.testing.assert_close((contrast * weights).sum(1).mean((1, 2)), grey.mean((1, 2)))
    assert not torch.allclose(contrast, images)
    colour = jitter_colours(images, keys(), 0, strength=(0.0, 0.0, 0.2))
    torch.testing.assert_close((colour * weights).sum(1), grey)
    grey_images = grey[:, None].expand_as(images)
    torch.testing.assert_close(jitter_colours(grey_images, keys(), 0, strength=(0.0, 0.0, 0.2)), grey_images)


def test_erasing() -> None:
    images = pictures(997, 16)
    out = erase(images, keys(997), 0, probability=0.25)
    changed = (out != images).any(dim=1)
    assert changed.flatten(1).any(dim=1).float().mean() == pytest.approx(0.25, abs=0.04)
    for row in changed.flatten(1).any(dim=1).nonzero()[:20, 0]:
        place = changed[row].nonzero()
        low, high = place.amin(0), place.amax(0) + 1
        assert changed[row].sum() == (high - low).prod()  # one window, all of it
        assert 0.01 < changed[row].float().mean() < 0.26
        want = images[row].mean((1, 2))
        torch.testing.assert_close(out[row][:, place[0, 0], place[0, 1]], want)
    spared = erase(images, keys(997), 0, probability=1.0, spare=torch.tensor([[0.0, 0.0, 0.5, 1.0]]).expand(997, 4))
    assert torch.equal(spared[..., :8], images[..., :8])
    assert not torch.equal(spared, images)


def text(rows: int = 499, length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (rows, length), generator=generator)
    lengths = torch.randint(2, length + 1, (rows,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    ids[:, 0] = 1
    ids[torch.arange(rows), lengths - 1] = 2
    return ids.masked_fill(~mask, 0), mask


def test_dropped_tokens() -> None:
    ids, mask = text()
    out, left = drop_tokens(ids, mask, keys(499), 0, share=0.3, special_ids={1, 2})
    words = (mask.sum(1) - 2).clamp(min=0)
    assert (1 - (left.sum() - 2 * 499) / words.sum()).item() == pytest.approx(0.3, abs=0.05)
    for row, old in zip(out.tolist(), ids.tolist(), strict=True):
        kept = [token for token in row if token]
        rest = iter(old)
        assert all(token in rest for token in kept)  # in order
        assert row == kept + [0] * (len(row) - len(kept))
        assert kept[0] == 1
        assert kept[-1] == 2
        assert len(kept) > 2 or sum(token > 2 for token in old) == 0
    assert torch.equal(left, out > 0)
    everything, _ = drop_tokens(ids, mask, keys(499), 0, share=1.0, special_ids={1, 2})
    assert torch.equal((everything > 2).sum(1), words.clamp(max=1))  # one word stays
    assert torch.equal(drop_tokens(ids, mask, keys(499), 0, share=0.0)[0], ids)


def test_dropped_tokens_do_not_depend_on_the_batch_or_its_padding() -> None:
    ids, mask = text()
    out, _ = drop_tokens(ids, mask, keys(499), 0, share=0.3, special_ids={1, 2})
    rows = (mask.sum(1) <= 6).nonzero()[:, 0].flip(0)
    short, _ = drop_tokens(ids[rows, :6], mask[rows, :6], keys(499)[rows], 0, share=0.3, special_ids={1, 2})
    assert torch.equal(short, out[rows, :6])


def test_unknown_in_place_of_words() -> None:
    ids, mask = text()
    out, same = drop_tokens(ids, mask, keys(499), 0, share=0.3, special_ids={1, 2}, unknown_id=3)
    assert torch.equal(same, mask)
    assert torch.equal(out[out != 3], ids[out != 3])
    assert (ids[out == 3] > 2).all()
    closed, _ = drop_tokens(ids, mask, keys(499), 0, share=0.3, special_ids={1, 2})
    assert torch.equal((out == 3).sum(1), (ids > 0).sum(1) - (closed > 0).sum(1))


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_feature_noise_and_dropout(shape: tuple[int, ...]) -> None:
    x = torch.ones(2003, *shape)
    noisy = noisy_features(x, keys(2003), 0, spread=0.5) - 1
    assert noisy.std() == pytest.approx(0.5, abs=0.02)
    assert noisy.mean() == pytest.approx(0.0, abs=0.02)
    dropped = drop_features(x, keys(2003), 0, share=0.2)
    assert sorted({round(v, 4) for v in dropped.unique().tolist()}) == [0.0, 1.25]
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    row = torch.tensor([11])
    assert torch.equal(noisy_features(x[row], keys(2003)[row], 0, spread=0.5), noisy[row] + 1)
    assert torch.equal(drop_features(x[row], keys(2003)[row], 0, share=0.2), dropped[row])
    assert torch.equal(drop_features(x, keys(2003), 0, share=0.0), x)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        drop_features(x, keys(2003), 0, share=1.0)


def test_mixed_features_and_targets_share_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(23, 5, generator=generator, dtype=torch.float64)
    target = torch.eye(23, dtype=torch.float64)
    x, y = mix_features(pool[:B], target[:B], keys(), 0, pool=pool, pool_target=target, most=0.4)
    torch.testing.assert_close(x, y @ pool)  # the target says who was mixed, and by how much
    torch.testing.assert_close(y.sum(1), torch.ones(B, dtype=torch.float64))
    assert (y[torch.arange(B), torch.arange(B)] >= 0.6).all()
    rows = torch.tensor([5, 1])
    part, _ = mix_features(pool[rows], target[rows], keys()[rows], 0, pool=pool, pool_target=target, most=0.4)
    assert torch.equal(part, x[rows])


def test_absent_rows_are_not_mixed() -> None:
    pool, target = torch.randn(23, 5), torch.rand(23)
    pool[::2] = math.nan
    present = pool.isfinite().all(dim=1)
    options = {"pool": pool, "pool_target": target, "present": present, "pool_present": present}
    x, y = mix_features(pool, target, keys(23), 0, **options)
    assert x[present].isfinite().all()
    assert torch.equal(y[~present], target[~present])
    assert not torch.equal(x[present], pool[present])
    with pytest.raises(ValueError, match="no row that is present"):
        mix_features(pool, target, keys(23), 0, **{**options, "pool_present": present & False})
