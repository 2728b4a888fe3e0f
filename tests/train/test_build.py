from typing import Any

import pytest
import torch
from torch import nn

from polyfuse.config import EncoderConfig, ModelConfig
from polyfuse.data.spec import ModalitySpec, TargetSpec, empty_input
from polyfuse.encoders import build_encoder
from polyfuse.errors import UserError
from polyfuse.fusion import FUSIONS
from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead
from polyfuse.train.build import build_model, freeze, parameter_count

SPECS = {
    "photo": ModalitySpec("photo", "image", {"size": 8}),
    "title": ModalitySpec("title", "text", {"vocab_size": 11, "max_length": 5}),
    "cells": ModalitySpec("cells", "tabular", {"numeric": 3, "cardinalities": [4]}),
    "sound": ModalitySpec("sound", "audio", {"rate": 4000, "samples": 1600}),
    "trace": ModalitySpec("trace", "series", {"channels": 2, "length": 7}),
    "clip": ModalitySpec("clip", "vector", {"width": 6}),
}
TARGET = TargetSpec("classification", ("x", "y", "z"))


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"fusion": "concat", "embed_dim": 8, "hidden": 6, **settings})


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize(
    ("target", "head", "width"),
    [
        (TARGET, ClassificationHead, 3),
        (TargetSpec("multilabel", ("x", "y")), MultilabelHead, 2),
        (TargetSpec("regression"), RegressionHead, 2),
    ],
)
def test_every_type_fusion_and_task(fusion: str, target: TargetSpec, head: type, width: int) -> None:
    model = build_model(SPECS, target, config(fusion=fusion)).eval()
    assert model.modalities == tuple(SPECS)
    assert isinstance(model.head, nn.Identity if model.fusion.decision_level else head)
    inputs = {name: empty_input(spec, 3) for name, spec in SPECS.items()}
    logits = model(inputs, torch.tensor([[True] * 6, [False] * 6, [True, False] * 3])).logits
    assert logits.shape == (3, width)
    assert logits.isfinite().all()


def test_weights_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = build_model(SPECS, TARGET, config(), seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    same = build_model(SPECS, TARGET, config(), seed=5).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    other = build_model(SPECS, TARGET, config(), seed=6).state_dict()
    assert not torch.equal(one["encoders.photo.project.weight"], other["encoders.photo.project.weight"])


def test_arms_with_one_seed_start_from_the_same_encoders() -> None:
    a = build_model(SPECS, TARGET, config(fusion="concat"), seed=5).encoders.state_dict()
    b = build_model(SPECS, TARGET, config(fusion="gated"), seed=5).encoders.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_options_of_one_encoder() -> None:
    options = {"photo": EncoderConfig(embed_dim=5, args={"hidden_dim": 16}, frozen=True)}
    model = build_model(SPECS, TARGET, config(encoders=options))
    assert model.fusion.widths["photo"] == 5
    assert model.fusion.widths["title"] == 8
    assert not any(p.requires_grad for p in model.encoders["photo"].parameters())
    frozen = parameter_count(model.encoders["photo"])
    assert parameter_count(model) - parameter_count(model, trainable=True) == frozen > 0


def test_given_encoders_are_used() -> None:
    photo = freeze(build_encoder(SPECS["photo"], 7, hidden_dim=16))
    model = build_model(SPECS, TARGET, config(), encoders={"photo": photo, "clip": nn.Identity()})
    assert model.encoders["photo"] is photo
    assert (model.fusion.widths["photo"], model.fusion.widths["clip"]) == (7, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fusion_args": {"hiden": 3}},
            r"unknown key 'model\.fusion_args\.hiden'; did you mean 'hidden'.*concat takes",
        ),
        ({"fusion_args": {"out_dim": 3}}, r"unknown key 'model\.fusion_args\.out_dim'"),
        ({"fusion": "aecf", "fusion_args": {"policy": "all"}}, r"'model\.fusion_args' of aecf: .*policy.*all"),
        ({"fusion": "aecf", "fusion_args": {"num_heads": 3}}, r"'model\.fusion_args' of aecf: .*divisible"),
        (
            {"encoders": {"photo": EncoderConfig(name="image_cn")}},
            "unknown encoder 'image_cn'; did you mean 'image_cnn'",
        ),
        (
            {"encoders": {"photo": EncoderConfig(name="vector_mlp")}},
            "takes vector inputs, but modality 'photo' is image",
        ),
        ({"encoders": {"photo": EncoderConfig(args={"size": 9})}}, r"unknown key 'model\.encoders\.photo\.args\.size'"),
        ({"encoders": {"photo": EncoderConfig(args={"hidden": 9})}}, "did you mean 'hidden_dim'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(SPECS, TARGET, config(**settings))


def test_targets_and_encoders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="a classification target needs classes, got none"):
        build_model(SPECS, TargetSpec("classification"), config())
    with pytest.raises(ValueError, match=r"encoder of 'photo' must give \(B, D\), got \(1, 3, 8, 8\) for one row"):
        build_model(SPECS, TARGET, config(), encoders={"photo": nn.Identity()})
