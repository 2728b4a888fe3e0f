"""FastViT: counts, folding, and gradients, away from MobileCLIP."""

import copy

import pytest
import torch
from torch import nn

from polyfuse.layers import capture_attention
from polyfuse.models.fastvit import FastViT, RepMixer
from polyfuse.models.reparameterized import ConvNorm, Reparameterizable, RepConv, folded, reparameterize

DEPTHS, DIMS = (1, 1, 2, 1), (8, 16, 32, 64)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and scales, so that a branch that is left out shows."""
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif value.ndim == 1 and not name.endswith("bias"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    ("depths", "dims", "training", "after"),
    [
        ((2, 6, 10, 2), (64, 128, 256, 512), 11_406_464, 11_356_992),
        ((4, 12, 20, 4), (64, 128, 256, 512), 21_541_120, 21_460_544),
        ((4, 12, 24, 4), (80, 160, 320, 640), 35_814_720, 35_702_480),
    ],
)
def test_counts_are_the_published_ones(
    depths: tuple[int, ...], dims: tuple[int, ...], training: int, after: int
) -> None:
    with torch.device("meta"):
        model = FastViT(depths, dims)
    projection = model.out_dim * 512
    assert sum(p.numel() for p in model.parameters()) + projection == training
    reparameterize(model)
    assert sum(p.numel() for p in model.parameters()) + projection == after


@pytest.mark.parametrize("part", ["stem", "mixer", "merge", "position", "expand"])
def test_every_folded_part_equals_its_branches(part: str) -> None:
    """Batch statistics in training, running ones in evaluation: with a momentum of 1 both are the same."""
    model = lively(FastViT(DEPTHS, DIMS)).double()
    module, channels = {
        "stem": (model.stem[2], 8),
        "mixer": (model.stages[1].blocks[0].mixer, 16),
        "merge": (model.stages[2].merge, 16),
        "position": (model.stages[3].position, 64),
        "expand": (model.expand, 64),
    }[part]
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    x = torch.randn(3, channels, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        branches = module.train()(x)
        count = 3 * branches.shape[2] * branches.shape[3]
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):  # training divides by n, what it remembers by n - 1
                seen = 3 * 7 * 5 if norm.num_features == channels and branches.shape[2:] == x.shape[2:] else count
                norm.running_var *= (seen - 1) / seen
        on_the_fly = module.eval()(x)
        reparameterize(module)
        fused = module(x)
    torch.testing.assert_close(on_the_fly, branches, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused, branches, rtol=1e-9, atol=1e-9)


def test_evaluation_has_the_gradients_of_the_branches() -> None:
    block = lively(RepConv(3, 3, (3, 3))).double().eval()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    parts = [m for m in (block.conv, block.scale) if isinstance(m, ConvNorm)]
    plain = sum(part.norm(part.conv(x)) for part in parts) + block.skip(x)
    expected = torch.autograd.grad(nn.functional.gelu(plain).square().sum(), [x, *block.parameters()])
    found = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_repmixer_over_a_sequence_has_no_pointwise_branch() -> None:
    assert RepMixer(5, (1, 11)).mix.scale is None
    assert RepMixer(5, (3, 3)).mix.scale is not None


def test_images_with_channels_side_by_side_train() -> None:
    """What crashes PyTorch in this layout (backward of the first 1 x 1 convolution) is kept from it."""
    model, images = lively(FastViT(DEPTHS, DIMS)), torch.randn(3, 3, 64, 64)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        copied = copy.deepcopy(model).train()
        for _ in range(4):
            copied.zero_grad()
            copied(images.contiguous(memory_format=layout)).square().mean().backward()
        gradients.append(copied.stem[0].scale.conv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_every_parameter_trains_in_both_forms() -> None:
    for fused in (False, True):
        model = lively(FastViT(DEPTHS, DIMS))
        if fused:
            reparameterize(model)
        model.train()(torch.randn(3, 3, 64, 96)).square().mean().backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []


def test_reparameterizing_leaves_one_convolution_and_can_be_repeated() -> None:
    model = lively(FastViT(DEPTHS, DIMS)).eval()
    before = copy.deepcopy(model)
    x = torch.randn(2, 3, 96, 64)
    reparameterize(model)
    blocks = [m for m in model.modules() if isinstance(m, Reparameterizable)]
    assert len(blocks) == 3 + 4 + 3 * 2 + 1 + 1
    assert all(block.fused is not None for block in blocks)
    kept = dict(model.named_parameters())
    reparameterize(model)
    assert all(kept[name] is value for name, value in model.named_parameters())
    assert not any(".conv.conv." in name or ".skip." in name for name in kept)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)


def test_attention_maps_are_over_the_pixels() -> None:
    model = lively(FastViT(DEPTHS, DIMS)).eval()
    with torch.no_grad(), capture_attention(model) as maps:
        model(torch.randn(2, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "stages.3.blocks.0.attention": (2, 2, 6, 6)  # 2 x 3 pixels, 64 channels in heads of 32
    }
    torch.testing.assert_close(sum(maps.values()).sum(-1), torch.ones(2, 2, 6))


@pytest.mark.parametrize(
    ("depths", "dims", "message"),
    [
        ((1, 1), (8, 16, 32), r"same stages, got \[1, 1\]"),
        ((1, 1), (8, 24), "multiple of 32, got 24"),
        ((1, 1), (12, 32), r"multiple of the one before.*\[12, 32\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(depths: tuple[int, ...], dims: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastViT(depths, dims)


def test_a_norm_without_statistics_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="without running statistics"):
        folded(torch.ones(3, 1, 1, 1), nn.BatchNorm2d(3, track_running_stats=False))
