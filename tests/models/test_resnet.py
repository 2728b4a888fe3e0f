"""ResNet: equal to transformers' in outputs and gradients, torchvision's names and counts, norms that stay put."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.resnet import ResNet, resnet50, resnet101, resnet152, resnet_rules, resnet_tiny

DEPTHS, WIDTH, CLASSES = (1, 2, 1, 1), 4, 7


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, norms and running statistics included, so that no swap goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(noise.abs() * 0.3 + 0.7 if value.ndim == 1 and not name.endswith("bias") else noise * 0.2)
    return model


def renamed(key: str) -> str:
    """Torchvision's name to transformers'."""
    parts = key.split(".")
    leaf = parts[-1]
    kind = "normalization" if parts[-2].startswith("bn") else "convolution"
    if parts[0] in ("conv1", "bn1"):
        return f"embedder.embedder.{kind}.{leaf}"
    start = f"encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{start}.shortcut.{('convolution', 'normalization')[int(parts[3])]}.{leaf}"
    return f"{start}.layer.{int(parts[2][-1]) - 1}.{kind}.{leaf}"


def pair() -> tuple[ResNet, nn.Module]:
    transformers = pytest.importorskip("transformers")
    ours = filled(ResNet(depths=DEPTHS, width=WIDTH, num_classes=None).double())
    config = transformers.ResNetConfig(
        embedding_size=WIDTH, hidden_sizes=[16, 32, 64, 128], depths=list(DEPTHS), layer_type="bottleneck"
    )
    theirs = transformers.ResNetModel(config).double()
    theirs.load_state_dict({renamed(key): value for key, value in ours.state_dict().items()})
    return ours, theirs


@pytest.mark.parametrize("training", [False, True])
def test_maps_and_gradients_are_those_of_transformers(training: bool) -> None:
    ours, theirs = pair()
    ours.train(training), theirs.train(training)
    images = torch.randn(3, 3, 43, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    out = ours(inputs[0])
    reference = theirs(inputs[1], output_hidden_states=True)
    stem_pooled = F.max_pool2d(out.stem, 3, 2, padding=1)
    mine = [stem_pooled, out.stage_1, out.stage_2, out.stage_3, out.stage_4]
    for a, b in zip(mine, reference.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooled, reference.pooler_output.flatten(1), rtol=0, atol=1e-5)
    weights = [torch.randn_like(part) for part in mine]
    sum((a * w).sum() for a, w in zip(mine, weights, strict=True)).backward()
    sum((a * w).sum() for a, w in zip(reference.hidden_states, weights, strict=True)).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-7, atol=1e-5)
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, gradients[renamed(name)], rtol=1e-7, atol=1e-5)
    if training:
        torch.testing.assert_close(ours.bn1.running_var, theirs.embedder.embedder.normalization.running_var)


def test_the_stride_is_on_the_middle_convolution() -> None:
    block = resnet_tiny().layer2[0]
    assert [conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)] == [1, 2, 1]


@pytest.mark.parametrize(("build", "count"), [(resnet50, 25_557_032), (resnet101, 44_549_160), (resnet152, 60_192_808)])
def test_published_counts(build: type[ResNet], count: int) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == count


def test_torchvision_names_load_and_come_back() -> None:
    model = filled(resnet_tiny())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight", "fc.bias"}
    assert expected <= set(state)
    loaded = ResNet.from_original(state)
    assert loaded.config["depths"] == [1, 1, 1, 1]
    back = loaded.to_original()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    images = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loaded(images).logits, model.eval()(images).logits)


def test_files_of_old_and_of_parallel_runs_load() -> None:
    state = {k: v for k, v in filled(resnet_tiny()).state_dict().items() if not k.endswith("num_batches_tracked")}
    loaded = ResNet.from_original({f"module.{key}": value for key, value in state.items()}, {"num_classes": None})
    assert loaded.fc is None
    assert not loaded.bn1.num_batches_tracked.any()
    torch.testing.assert_close(loaded.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])


def test_what_does_not_fit_is_named() -> None:
    state = resnet_tiny().state_dict()
    with pytest.raises(ValueError, match=r"cannot map layer1\.0\.se\.weight"):
        ResNet.from_original({**state, "layer1.0.se.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"layer2\.0\.conv2\.weight is \(16, 1, 3, 3\), expected \(16, 16, 3, 3\)"):
        ResNet.from_original({**state, "layer2.0.conv2.weight": torch.zeros(16, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"blocks found: \[0, 0, 0, 0\]"):
        ResNet.from_original({k: v for k, v in state.items() if "conv3" not in k})


@pytest.mark.parametrize(("kwargs", "said"), [({"depths": (1, 2)}, r"got \(1, 2\)"), ({"norm_mode": "no"}, "'no'")])
def test_wrong_arguments_are_refused(kwargs: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResNet(**kwargs)  # type: ignore[arg-type]


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 1, 33, 33\)"):
        resnet_tiny()(torch.zeros(2, 1, 33, 33))


@pytest.mark.parametrize("mode", ["eval", "frozen"])
def test_norms_that_stay_put_do_not_mix_rows(mode: str) -> None:
    model = filled(resnet_tiny(norm_mode=mode)).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    images = torch.randn(3, 3, 33, 33, generator=torch.Generator().manual_seed(4))
    alone: Tensor = model(images[:1]).logits
    torch.testing.assert_close(model(images).logits[:1], alone)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert model.bn1.weight.requires_grad == (mode == "eval")
    mixing = filled(resnet_tiny()).train()
    assert not torch.allclose(mixing(images).logits[:1], mixing(images[:2]).logits[:1])


def test_fewer_maps_stop_early() -> None:
    model = filled(resnet_tiny()).eval()
    images = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(5))
    for number in range(1, 6):
        for a, b in zip(model.feature_maps(images, number), model.feature_maps(images), strict=False):
            torch.testing.assert_close(a, b)
        assert len(model.feature_maps(images, number)) == number


def test_rules_take_prefixes_and_new_names() -> None:
    rules = resnet_rules(resnet_tiny(), "a.", "b.", {"layer1": "4"})
    found = {rule.ours: rule.theirs[0] for rule in rules}
    assert found["a.layer1.0.conv1.weight"] == "b.4.0.conv1.weight"
    assert found["a.layer2.0.conv1.weight"] == "b.layer2.0.conv1.weight"


def test_saved_and_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = filled(resnet_tiny(norm_mode="frozen"))
    again = ResNet.from_pretrained(model.save_pretrained(tmp_path))
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
