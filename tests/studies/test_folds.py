"""Features of training rows come from encoders that have not seen them, nor anything of their group."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.config import ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.studies import arms
from polyfuse.studies.compare import cache_features
from polyfuse.train.features import embed

NAMES, WIDTH, FOLDS = ("a", "b"), 5, 3
SPECS = {name: ModalitySpec(name, "vector", {"width": WIDTH}) for name in NAMES}
TARGET = TargetSpec("classification", ("x", "y", "z"))
MODEL = ModelConfig(embed_dim=7, corruption=0.0)
CONFIG = TrainConfig(steps=4, batch_size=16, evaluations=2)


def rows(count: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {name: torch.randn(count, WIDTH, generator=g) for name in NAMES}
    present = torch.rand(count, 2, generator=g) > 0.2
    present[:, 0] |= ~present.any(dim=1)
    inputs = {name: x * present[:, [m]] for m, (name, x) in enumerate(inputs.items())}
    target = torch.randint(0, 3, (count,), generator=g)
    return Batch(NAMES, inputs, present, target, torch.arange(count) + 1000 * seed)


def test_no_training_row_is_embedded_by_an_encoder_that_saw_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    train, groups = rows(83, 1), [f"group {i // 2}" for i in range(83)]
    seen: list[tuple[str, Tensor, nn.Module]] = []
    original = arms.fit_encoder

    def watched(spec: ModalitySpec, data: Batch, *rest: Any) -> Any:
        encoder, result = original(spec, data, *rest)
        seen.append((spec.name, data.keys, encoder))
        return encoder, result

    monkeypatch.setattr(arms, "fit_encoder", watched)
    encoders, (cached, _, test), specs = cache_features(
        train, rows(31, 2), rows(37, 3), SPECS, TARGET, MODEL, CONFIG, folds=FOLDS, groups=groups, workers=1
    )
    assert len(seen) == len(NAMES) * (FOLDS + 1)
    assert specs["a"].options["width"] == 7
    for m, name in enumerate(NAMES):
        makers = [(keys, encoder) for of, keys, encoder in seen if of == name and len(keys) < len(train)]
        assert len(makers) == FOLDS
        outside = torch.stack([~torch.isin(train.keys, keys) for keys, _ in makers])
        assert bool((outside.sum(dim=0) == 1).all())  # every row is left out by exactly one encoder
        for i in range(0, 82, 2):
            assert torch.equal(outside[:, i], outside[:, i + 1])  # with its whole group
        for part, (_, encoder) in zip(outside, makers, strict=True):
            index = part.nonzero()[:, 0]
            alone = embed({n: encoder if n == name else encoders[n] for n in NAMES}, train.rows(index))
            mine, theirs = cached.inputs[name], alone.inputs[name]
            assert isinstance(mine, Tensor)
            assert isinstance(theirs, Tensor)
            torch.testing.assert_close(mine[index], theirs)
            assert not mine[index][~train.present[index, m]].any()
    final = embed(encoders, rows(37, 3)).inputs["a"]
    assert isinstance(final, Tensor)
    assert isinstance(test.inputs["a"], Tensor)
    torch.testing.assert_close(test.inputs["a"], final)  # new rows: by the encoders that saw all training rows


def test_one_fold_embeds_every_row_with_the_final_encoders() -> None:
    train = rows(40, 1)
    encoders, (cached, _, _), _ = cache_features(
        train, rows(20, 2), rows(20, 3), SPECS, TARGET, MODEL, CONFIG, workers=1
    )
    for name in NAMES:
        mine, final = cached.inputs[name], embed(encoders, train).inputs[name]
        assert isinstance(mine, Tensor)
        assert isinstance(final, Tensor)
        torch.testing.assert_close(mine, final)
