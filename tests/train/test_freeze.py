"""Freezing by pattern, unfreezing by step, rates by depth, over the model families."""

import copy

import pytest
import torch
from torch import nn

from polyfuse.errors import UserError
from polyfuse.models import MODELS
from polyfuse.train.freeze import (
    GradualUnfreezing,
    freeze_parameters,
    layerwise_groups,
    parameter_depths,
    trainable_count,
    unfreeze_parameters,
)
from polyfuse.train.schedule import set_learning_rate

FAMILIES = [name for name in MODELS if name.endswith("_tiny")]


def toy() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 5), "middle": nn.Linear(5, 5), "head": nn.Linear(5, 2)})


def run(model: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    return model["head"](model["middle"](model["body"](x)))


def test_counts_are_printed_and_true() -> None:
    model, said = toy(), []
    count = freeze_parameters(model, ["body", "*.bias"], say=said.append)
    assert (count.tensors, count.parameters, count.trainable) == (4, 20 + 5 + 2, 25 + 10)
    assert said == ["froze body, *.bias: 4 tensors, 27 parameters; 35 are trainable now"]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"middle.weight", "head.weight"}
    assert unfreeze_parameters(model, ["re:body.*"], say=said.append).trainable == 55 == trainable_count(model)
    assert said[1].startswith("unfroze re:body.*: 2 tensors, 20 parameters")


def test_frozen_parameters_do_not_move_and_lose_their_gradient() -> None:
    model = toy()
    run(model, torch.randn(7, 3)).sum().backward()
    freeze_parameters(model, ["body"], say=lambda _: None)
    assert model["body"].weight.grad is None
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    run(model, torch.randn(7, 3)).sum().backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"middle.weight", "middle.bias", "head.weight", "head.bias"}


def test_no_match_is_an_error_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = toy()
    with pytest.raises(UserError, match=r"no parameter matches 'bdy.\*'; nearest: body"):
        freeze_parameters(model, ["head", "bdy.*"])
    assert trainable_count(model) == 62
    freeze_parameters(model, ["head"])
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output is for results
    assert captured.err == "froze head: 2 tensors, 12 parameters; 50 are trainable now\n"


def test_tied_parameters_freeze_under_either_name() -> None:
    model = MODELS["bert_tiny"]().attach("mlm")
    tied = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    tied["b"].weight = tied["a"].weight
    assert freeze_parameters(tied, ["b"], say=lambda _: None).tensors == 1
    assert not tied["a"].weight.requires_grad
    assert freeze_parameters(model, ["heads"], say=lambda _: None).tensors > 0


def test_gradual_unfreezing_is_a_function_of_the_step() -> None:
    model, said = toy(), []
    freeze_parameters(model, ["head.bias"], say=said.append)  # not in the schedule: stays as it is
    gradual = GradualUnfreezing(model, {0: ["head.weight"], 3: ["middle"], 5: ["*.weight", "body"]}, say=said.append)
    wanted = {0: {"head.weight"}, 2: {"head.weight"}, 3: {"head.weight", "middle.weight", "middle.bias"}}
    everything = {*wanted[3], "body.weight", "body.bias"}
    states = []
    for step in range(7):
        assert gradual.apply(step) == (step in (3, 5))
        states.append({name for name, p in model.named_parameters() if p.requires_grad})
        assert states[-1] == wanted.get(step, wanted[0] if step < 3 else wanted[3] if step < 5 else everything)
    assert "unfroze at step 3: 2 tensors, 30 parameters; 40 are trainable now" in said
    for step in (5, 1, 3, 0):  # as a resumed run would ask
        gradual.apply(step)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == states[step]


def test_an_optimiser_made_first_trains_what_joins_later() -> None:
    model = toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    gradual = GradualUnfreezing(model, {0: ["head"], 2: ["middle", "body"]}, say=lambda _: None)
    start = model["body"].weight.detach().clone()
    for step in range(3):
        gradual.apply(step)
        optimizer.zero_grad()
        run(model, torch.ones(7, 3)).square().sum().backward()
        optimizer.step()
        assert torch.equal(model["body"].weight, start) == (step < 2)


def test_schedule_refusals() -> None:
    with pytest.raises(ValueError, match=r"none negative; got \[\]"):
        GradualUnfreezing(toy(), {})
    with pytest.raises(ValueError, match=r"got \[-1, 2\]"):
        GradualUnfreezing(toy(), {2: ["head"], -1: ["body"]})
    with pytest.raises(UserError, match="'bod'"):
        GradualUnfreezing(toy(), {0: ["head"], 2: ["bod"]})


@pytest.mark.parametrize("family", FAMILIES)
def test_depths_of_every_family(family: str) -> None:
    model = MODELS[family]()
    if model.HEADS:
        task = next(iter(model.HEADS))
        try:
            model.attach(task)
        except (TypeError, ValueError):  # a head that must be told its size
            model.attach(task, num_classes=3)
    depth = parameter_depths(model)
    assert set(depth) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(depth.values()) | {0} == set(range(max(depth.values()) + 1))  # no gap
    assert max(depth.values()) > 2
    bottom = {name for name, d in depth.items() if d == max(depth.values())}
    assert not any("layers" in name or "heads" in name for name in bottom)
    words = [name for name in depth if name.endswith(("embeddings.words.weight", "text.tokens.weight"))]
    assert set(words) <= bottom
    assert all(d == 0 for name, d in depth.items() if name.startswith("heads.") or "pooler" in name)
    lists: dict[str, list[int]] = {}
    for name, d in depth.items():
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit() and parts[place - 1].endswith(("layers", "connections", "stages")):
                lists.setdefault(".".join(parts[:place]), []).append(int(part) + d)
                break
    for path, sums in lists.items():
        assert len(set(sums)) == 1, path  # one layer up is one depth less


def test_depths_by_hand() -> None:
    vilbert = parameter_depths(MODELS["vilbert_tiny"]())  # three text layers, two of regions, two connections
    for name, want in {
        "text_layers.2": 1, "text_layers.0": 3, "region_layers.1": 1, "connections.0": 2, "embeddings": 4,
        "region_embeddings": 4, "text_pooler": 0,
    }.items():  # fmt: skip
        assert {d for key, d in vilbert.items() if key.startswith(f"{name}.")} == {want}, name
    mmbt = parameter_depths(MODELS["mmbt_tiny"]())  # a ResNet below two layers
    assert [mmbt[f"resnet.layer{stage}.0.conv1.weight"] for stage in (1, 2, 3, 4)] == [6, 5, 4, 3]
    assert mmbt["resnet.conv1.weight"] == mmbt["embeddings.words.weight"] == 7
    clip = parameter_depths(MODELS["clip_tiny"]())
    assert (clip["logit_scale"], clip["image.projection.weight"], clip["image.class_token"]) == (0, 0, 3)
    towers = parameter_depths(MODELS["mmbert_chapter"]())
    assert towers["towers.layers.text.5.mlp.up.weight"] == 7
    assert towers["strategy.layers.text.5.mlp.up.weight"] == 1


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = MODELS["uniter_tiny"]()
    freeze_parameters(model, ["embeddings"], say=lambda _: None)
    groups = layerwise_groups(model, 0.01, 0.5, weight_decay=0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["depth"] for group in groups] == sorted(group["depth"] for group in groups)
    depth = parameter_depths(model)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        assert group["lr"] == pytest.approx(0.01 * 0.5 ** group["depth"])
        assert {depth[names[id(p)]] for p in group["params"]} == {group["depth"]}
        if group["weight_decay"]:
            assert all(p.ndim >= 2 for p in group["params"])
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_the_schedule_keeps_the_shares() -> None:
    model = MODELS["bert_tiny"]()
    optimizer = torch.optim.AdamW(layerwise_groups(model, 0.01, 0.5))
    set_learning_rate(optimizer, 0.2)
    assert {g["depth"]: g["lr"] for g in optimizer.param_groups} == {d: pytest.approx(0.2 * 0.5**d) for d in range(4)}
    assert {group["lr"] for group in layerwise_groups(model, 0.01, 1.0)} == {0.01}


def test_a_model_without_lists_has_one_rate_and_refusals() -> None:
    assert {group["lr"] for group in layerwise_groups(toy(), 0.01, 0.5)} == {0.01}
    with pytest.raises(ValueError, match=r"\(0, 1\], got 0"):
        layerwise_groups(toy(), 0.01, 0.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        layerwise_groups(toy().requires_grad_(False), 0.01, 0.5)
