from typing import Any

import pytest
import torch
from torch import nn

from polyfuse.config import EncoderConfig, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError
from polyfuse.train.build import build_model
from polyfuse.train.features import embed, feature_specs, fit_encoder, fit_encoders, select
from polyfuse.train.loop import fit

SPECS = {
    "photo": ModalitySpec("photo", "image", {"size": 8}),
    "cells": ModalitySpec("cells", "tabular", {"numeric": 3, "cardinalities": []}),
}
TARGET = TargetSpec("classification", ("x", "y"))
ENCODERS = {
    "photo": EncoderConfig(args={"hidden_dim": 8, "dropout": 0.3}),
    "cells": EncoderConfig(args={"hidden_dim": 8, "dropout": 0.3}),
}
MODEL = ModelConfig(embed_dim=5, hidden=None, encoders=ENCODERS, corruption=0.1)
TRAIN = TrainConfig(epochs=6, batch_size=16, lr=0.01, evaluations=6)


def make_table(rows: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (rows,), generator=g)
    present = torch.rand(rows, 2, generator=g) > 0.25
    photo = torch.randint(0, 120, (rows, 3, 8, 8), generator=g) + 120 * target[:, None, None, None]
    numeric = torch.randn(rows, 3, generator=g) + target[:, None]
    inputs: dict[str, Any] = {
        "photo": photo.to(torch.uint8),
        "cells": {
            "numeric": numeric,
            "numeric_mask": torch.ones(rows, 3, dtype=torch.bool),
            "categorical": torch.zeros(rows, 0, dtype=torch.int64),
        },
    }
    return Batch(tuple(SPECS), inputs, present, target, torch.arange(rows), [f"r{i}" for i in range(rows)])


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    return fit_encoders(SPECS, make_table(97), make_table(41, 1), TARGET, MODEL, TRAIN)


def test_encoders_are_trained_frozen_and_in_eval_mode(encoders: dict[str, nn.Module]) -> None:
    fresh = build_model(SPECS, TARGET, MODEL, seed=TRAIN.seed).encoders
    for name in SPECS:
        assert not encoders[name].training
        assert not any(p.requires_grad for p in encoders[name].parameters())
        pairs = zip(encoders[name].parameters(), fresh[name].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_an_encoder_alone_learns_and_stops_on_validation() -> None:
    _, result = fit_encoder(SPECS["cells"], make_table(97), make_table(41, 1), TARGET, MODEL, TRAIN)
    first = result.history[0]
    assert result.best_metric < first["validation_loss"]
    assert first["validation_loss"] == first["validation_loss_complete"]  # one modality, one subset
    assert result.realised_drop_rate == 0.0


def test_features_equal_the_encoder_and_are_zero_where_absent(encoders: dict[str, nn.Module]) -> None:
    table = make_table(23, 2)
    poisoned = table.rows(torch.arange(23))
    poisoned.inputs["cells"]["numeric"][~table.present[:, 1]] = torch.nan
    features = embed(encoders, poisoned, batch_size=5)
    assert features.ids == table.ids
    assert torch.equal(features.present, table.present)
    for column, name in enumerate(SPECS):
        here = table.present[:, column]
        value = features.inputs[name]
        assert value.shape == (23, 5)
        assert not value[~here].any()
        rows = table.rows(here.nonzero()[:, 0])
        torch.testing.assert_close(value[here], encoders[name](rows.inputs[name]).detach())


def test_embedding_leaves_modes_alone() -> None:
    model = build_model(SPECS, TARGET, MODEL).train()
    a, b = embed(model, make_table(7)), embed(model, make_table(7))
    assert model.encoders["photo"].training
    assert torch.equal(a.inputs["photo"], b.inputs["photo"])  # no dropout
    assert not a.inputs["photo"].requires_grad


def test_a_head_on_cached_features_equals_the_whole_model(encoders: dict[str, nn.Module]) -> None:
    table, held = make_table(97), make_table(41, 1)
    cached, cached_held = embed(encoders, table), embed(encoders, held)
    config = TrainConfig(epochs=2, batch_size=16)
    head = build_model(feature_specs(cached), TARGET, MODEL, encoders={n: nn.Identity() for n in SPECS})
    fast = fit(head, cached, cached_held, config, task="classification")
    whole = build_model(SPECS, TARGET, MODEL, encoders=encoders)
    slow = fit(whole, table, held, config, task="classification")
    assert fast.best_metric == pytest.approx(slow.best_metric, abs=1e-4)
    assert not whole.encoders["photo"].training


def test_selecting_keeps_rows_and_identities() -> None:
    table = make_table(13)
    alone = select(table, "cells")
    rows = table.present[:, 1].nonzero()[:, 0]
    assert alone.modalities == ("cells",)
    assert torch.equal(alone.keys, table.keys[rows])
    assert torch.equal(alone.inputs["cells"]["numeric"], table.inputs["cells"]["numeric"][rows])
    assert alone.present.all()


def test_a_modality_that_is_never_there_is_refused() -> None:
    table = make_table(13)
    table = table.with_present(table.present & torch.tensor([True, False]))
    with pytest.raises(UserError, match="modality 'cells' is absent from every training row"):
        fit_encoder(SPECS["cells"], table, None, TARGET, MODEL, TRAIN)


def test_raw_inputs_are_no_features() -> None:
    with pytest.raises(ValueError, match=r"features of 'photo' must be \(N, D\), got Tensor; call embed first"):
        feature_specs(make_table(3))
