import random
from collections import Counter

import numpy as np
import pytest

from polyfuse.data.split import split_by_column, split_by_ratio, strata_of
from polyfuse.errors import UserError

RATIOS = (0.7, 0.15, 0.15)


def shares(code: np.ndarray) -> list[float]:
    return [float((code == s).mean()) for s in range(3)]


@pytest.mark.parametrize("ratios", [(0.7, 0.15, 0.15), (0.5, 0.3, 0.2), (0.8, 0.2, 0.0)])
def test_every_class_has_its_share_to_within_a_row(ratios: tuple[float, float, float]) -> None:
    draw = random.Random(0)
    labels = draw.choices("abcd", weights=[500, 100, 20, 3], k=997)
    code = split_by_ratio([f"r{i}" for i in range(997)], ratios=ratios, strata=labels)
    for label, count in Counter(labels).items():
        here = code[np.array(labels) == label]
        for s in range(3):
            assert abs((here == s).sum() - ratios[s] * count) <= 1.0 + 1e-9, (label, s)
        assert (here == 0).any()
    assert np.abs(np.array(shares(code)) - ratios).max() < 0.005


def test_a_row_keeps_its_split_wherever_it_stands() -> None:
    keys = [f"r{i}" for i in range(503)]
    labels = {key: "abc"[i % 3] for i, key in enumerate(keys)}
    before = dict(zip(keys, split_by_ratio(keys, strata=[labels[k] for k in keys]).tolist(), strict=True))
    shuffled = random.Random(1).sample(keys, len(keys))
    after = dict(zip(shuffled, split_by_ratio(shuffled, strata=[labels[k] for k in shuffled]).tolist(), strict=True))
    assert before == after


def test_seeds_differ_and_are_reproducible() -> None:
    keys = [f"r{i}" for i in range(200)]
    first, second = split_by_ratio(keys, seed=0), split_by_ratio(keys, seed=1)
    np.testing.assert_array_equal(first, split_by_ratio(keys, seed=0))
    assert 0.3 < (first != second).mean() < 0.7  # two independent draws differ in 1 - (.49 + .0225 + .0225) = 46 %


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(seed: int) -> None:
    draw = random.Random(seed)
    groups: list[str | None] = [f"g{draw.randrange(60)}" for _ in range(1009)]
    groups[::50] = [None] * len(groups[::50])
    labels = [draw.choice("ab") if g is None else "ab"[int(g[1:]) % 2] for g in groups]
    code = split_by_ratio([f"r{i}" for i in range(1009)], ratios=RATIOS, seed=seed, strata=labels, groups=groups)
    found: dict[str, set[int]] = {}
    for group, split in zip(groups, code.tolist(), strict=True):
        if group is not None:
            found.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())
    assert {s for splits in found.values() for s in splits} == {0, 1, 2}
    assert np.abs(np.array(shares(code)) - RATIOS).max() < 0.05
    alone = code[[i for i, g in enumerate(groups) if g is None]]
    assert len(set(alone.tolist())) > 1  # rows without a group are not one group


def test_a_group_named_like_a_key_is_not_that_row() -> None:
    code = split_by_ratio(["x", "y", "x2"], groups=["y", None, "y"])
    assert code[0] == code[2]


def test_one_row_classes_go_to_training() -> None:
    code = split_by_ratio([f"r{i}" for i in range(50)], strata=list(range(50)))
    assert (code == 0).all()
    pooled = split_by_ratio([f"r{i}" for i in range(50)], strata=strata_of(list(range(50))))
    assert np.abs(np.array(shares(pooled)) - RATIOS).max() <= 0.02


def test_split_column_words() -> None:
    values = ["train", "Training", "val", "valid", "dev", "validation", "test", "TESTING", None]
    assert split_by_column(values, "fold").tolist() == [0, 0, 1, 1, 1, 1, 2, 2, -1]
    with pytest.raises(UserError, match=r"split column 'fold' must hold train.*got 'holdout'; rename it"):
        split_by_column(["train", "holdout"], "fold")
