"""Adapters: nothing changes at the start, the formula, merging, files, every model family."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polyfuse.errors import UserError
from polyfuse.layers.lora import (
    LoRALinear,
    add_lora,
    load_adapters,
    lora_layers,
    merge_lora,
    save_adapters,
    uses_adapters,
)
from polyfuse.layers.transformer import TransformerLayer
from polyfuse.models import MODELS

B, T, D, R = 3, 5, 8, 2


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(TransformerLayer(D, 2) for _ in range(2))).eval()


def learned(model: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_up.data.copy_(torch.randn(layer.lora_up.shape, generator=generator))
    return model


def test_an_exact_no_op_at_the_start() -> None:
    model = layers()
    x = torch.randn(B, T, D)
    before = model(x)
    names = add_lora(model, rank=R)
    assert "0.attention.qkv" in names
    assert torch.equal(model(x), before)
    assert not torch.equal(learned(model)(x), before)


def test_the_formula_with_gradients() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 5, dtype=torch.float64)
    layer = LoRALinear(copy.deepcopy(linear), rank=R, alpha=3.0)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_down", "lora_up"}
    layer.lora_up.data.normal_()
    x = torch.randn(B, 7, dtype=torch.float64, requires_grad=True)
    down, up = (p.detach().clone().requires_grad_() for p in (layer.lora_down, layer.lora_up))
    want = x @ (linear.weight + 1.5 * up @ down).t() + linear.bias
    got = layer(x)
    torch.testing.assert_close(got, want)
    weight = torch.randn(B, 5, dtype=torch.float64)
    ours = torch.autograd.grad((got * weight).sum(), (x, layer.lora_down, layer.lora_up))
    for a, b in zip(ours, torch.autograd.grad((want * weight).sum(), (x, down, up)), strict=True):
        torch.testing.assert_close(a, b)


def test_only_adapters_train_and_their_number() -> None:
    model = layers()
    names = add_lora(model, ["*.qkv", "*.out"], rank=R)
    assert names == [f"{i}.attention.{part}" for i in (0, 1) for part in ("qkv", "out")]
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trainable.values()) == 2 * (R * (D + 3 * D) + R * (D + D))
    assert all("lora_" in name for name in trainable)
    model(torch.randn(B, T, D)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert uses_adapters(model) == names


def test_train_beside() -> None:
    model = layers()
    names = add_lora(model, rank=R, train=["1.mlp", "*norm*"])
    assert not any(name.startswith("1.mlp.") for name in names)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {name.split(".")[1] for name in trainable} == {"mlp", "attention_norm", "mlp_norm"}


def test_dropout_is_on_the_adapter_alone_and_in_training_alone() -> None:
    layer = LoRALinear(nn.Linear(7, 5), rank=R, dropout=1.0)
    layer.lora_up.data.normal_()
    x = torch.randn(B, 7)
    torch.testing.assert_close(layer.train()(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not torch.allclose(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_merged_equals_unmerged() -> None:
    model = learned(add(layers()))
    for layer in lora_layers(model).values():
        layer.lora_up.data.mul_(0.1)  # at a size where single precision resolves 1e-6
    x = torch.randn(B, T, D)
    plain, want = layers()(x), model(x)
    assert (want - plain).abs().max() > 0.1
    merge_lora(model)
    assert not lora_layers(model)
    assert type(model[0].attention.qkv) is nn.Linear
    torch.testing.assert_close(model(x), want, atol=1e-6, rtol=1e-6)
    assert set(model.state_dict()) == set(layers().state_dict())
    assert all(model.get_parameter(f"0.attention.qkv.{part}").requires_grad for part in ("weight", "bias"))


def add(model: nn.Module) -> nn.Module:
    add_lora(model, rank=R)
    return model


def test_names_of_the_model_stay() -> None:
    model, plain = add(layers()), layers()
    assert set(plain.state_dict()) <= set(model.state_dict())
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all("lora_" in key for key in missing.missing_keys)


def test_file_of_the_adapters_alone(tmp_path: Path) -> None:
    model = learned(add(layers()))
    x = torch.randn(B, T, D)
    path = save_adapters(model, tmp_path / "adapters.safetensors")
    assert all("lora_" in name for name in load_file(path))
    fresh = layers()
    assert load_adapters(fresh, path) == list(lora_layers(model))
    assert torch.equal(fresh(x), model(x))
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == set(load_file(path))
    again = learned(add(layers()), seed=5)
    load_adapters(again, path)
    assert torch.equal(again(x), model(x))


def test_file_with_a_head_beside(tmp_path: Path) -> None:
    model = layers()
    add_lora(model, ["0"], rank=R, train=["1.mlp"])
    model[1].mlp.get_parameter("up.weight").data.add_(1.0)
    fresh = layers()
    load_adapters(fresh, save_adapters(learned(model), tmp_path / "a.safetensors", beside=["1.mlp"]))
    x = torch.randn(B, T, D)
    assert torch.equal(fresh(x), model(x))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = save_adapters(add(layers()), tmp_path / "adapters.safetensors")
    with pytest.raises(UserError, match="no linear layer of Linear"):
        load_adapters(nn.Linear(3, 3), path)
    wide = nn.Sequential(*(TransformerLayer(2 * D, 2) for _ in range(2)))
    with pytest.raises(UserError, match=r"has shape \(2, 8\), the model expects \(2, 16\)"):
        load_adapters(wide, path)
    assert not lora_layers(wide)  # refused before anything changed
    other = layers()
    add_lora(other, rank=R + 1)
    with pytest.raises(UserError, match="other adapters than the model has"):
        load_adapters(other, path)
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no adapters"):
        load_adapters(layers(), tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is not a file of adapters"):
        load_adapters(layers(), tmp_path / "broken.safetensors")


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"no linear layer matches '0.atention'; nearest: 0.attention"):
        add_lora(layers(), ["0.atention"])
    with pytest.raises(ValueError, match="has adapters; merge_lora"):
        add_lora(add(layers()))
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(layers(), "nowhere")
    with pytest.raises(ValueError, match="1 or more, got 0"):
        LoRALinear(nn.Linear(3, 3), rank=0)


def test_multi_head_attention_of_torch_is_left_alone() -> None:
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(D, 2), "linear": nn.Linear(D, D)})
    assert add_lora(model) == ["linear"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = LoRALinear(nn.Linear(7, 5, dtype=dtype), rank=R)
    assert layer.lora_up.dtype == layer(torch.zeros(B, 7, dtype=dtype)).dtype == layer.merged().weight.dtype == dtype


@pytest.mark.parametrize("family", [name for name in MODELS if name.endswith("_tiny")])
def test_every_family_takes_adapters_on_its_layers(family: str) -> None:
    model = MODELS[family]()
    before = set(model.state_dict())
    names = add_lora(model, ["re:.*layers.*|.*blocks.*"], rank=R)
    assert names
    assert all(layer.weight.requires_grad is False for layer in lora_layers(model).values())
    assert before <= set(model.state_dict())
    assert set(merge_lora(model).state_dict()) == before
