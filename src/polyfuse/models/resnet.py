"""ResNet with bottleneck blocks (50, 101, 152), under the names that ImageNet checkpoints use.

Shapes: B batch, H, W height and width of the image, C channels, N classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.convert import Rule, strip_prefix, tensors_of
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments

EXPANSION = 4
NORM_MODES = ("batch", "eval", "frozen")


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + 1x1(3x3(1x1(x))))``, every convolution with its batch norm; the stride is on the 3x3.

    Source: https://arxiv.org/abs/1512.03385, figure 5. Differs: there the stride is on the first 1x1; torchvision and
    timm, whose checkpoints everybody has, put it on the 3x3.

    Args:
        in_channels: Channels of the input.
        channels: Channels inside; the output has 4 times as many.
        stride: Of the 3x3 convolution and the shortcut.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(channels, **factory)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(out_channels, **factory)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **factory),
                nn.BatchNorm2d(out_channels, **factory),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, 4 channels, H / stride, W / stride)``."""
        inside = F.relu(self.bn1(self.conv1(x)))
        inside = F.relu(self.bn2(self.conv2(inside)))
        inside = self.bn3(self.conv3(inside))
        return F.relu(inside + (x if self.downsample is None else self.downsample(x)))


class ResNet(PretrainedModel):
    """A ResNet of bottleneck blocks: five feature maps, their average, and class logits where it has a classifier.

    Source: https://arxiv.org/abs/1512.03385, table 1. Names and numbers are torchvision's (``conv1``, ``bn1``,
    ``layer1.0.conv1``, ``downsample.0``, ``fc``), which timm shares: 25,557,032 parameters (50 layers), 44,549,160
    (101) and 60,192,808 (152), classifier included.

    Args:
        depths: Blocks per stage: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) 101, (3, 8, 36, 3) 152.
        width: Channels of the stem; stage s has ``4 width 2^s`` of them.
        num_classes: Of the classifier ``fc``; None = no classifier.
        norm_mode: What batch norms do in training: ``batch`` normalises by the batch and keeps running statistics;
            ``eval`` uses the running statistics as they are, so that rows do not mix (wants pretrained weights);
            ``frozen`` does so too and freezes scales and shifts.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If there are not four stages, or ``norm_mode`` is unknown.

    Example:
        >>> model = ResNet(depths=(1, 1, 1, 1), width=8, num_classes=3)
        >>> [tuple(part.shape[1:]) for part in model.feature_maps(torch.zeros(1, 3, 64, 64))]
        [(8, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    """

    LAYOUTS = ("torchvision",)
    #: Of the public ImageNet weights: images in [0, 1], then ``(x - mean) / std`` per channel.
    IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_classes: int | None = 1000,
        norm_mode: str = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        if len(depths) != 4:
            raise ValueError(f"depths must name the blocks of four stages, got {tuple(depths)}")
        if norm_mode not in NORM_MODES:
            raise ValueError(f"norm_mode must be one of {', '.join(NORM_MODES)}, got {norm_mode!r}")
        self.config = config
        self.norm_mode = norm_mode
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        #: Channels of the five maps, the stem's first.
        self.channels = (width, *(EXPANSION * width * 2**stage for stage in range(4)))
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        for stage, depth in enumerate(depths):
            inner, before = width * 2**stage, self.channels[stage]
            blocks = [Bottleneck(before, inner, 1 if stage == 0 else 2, **factory)]
            blocks += [Bottleneck(EXPANSION * inner, inner, **factory) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = None if num_classes is None else nn.Linear(self.channels[-1], num_classes, **factory)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d) and norm_mode == "frozen":
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training; batch norms follow only where ``norm_mode`` lets them."""
        super().train(mode)
        if self.norm_mode != "batch":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def feature_maps(self, images: Tensor, number: int = 5) -> tuple[Tensor, ...]:
        """The stem's map (after its norm and ReLU, *before* the max-pooling), then those of the stages.

        Shape:
            - images: ``(B, 3, H, W)``.
            - maps: ``(B, C_i, H / 2^k, W / 2^k)`` with k = 1, 2, 3, 4, 5 and C as in ``channels``; only the first
              ``number`` are computed.

        Raises:
            ValueError: If images are not ``(B, 3, H, W)``.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        maps = [F.relu(self.bn1(self.conv1(images)))]
        x = F.max_pool2d(maps[0], 3, 2, padding=1)
        for stage in range(1, number):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return tuple(maps)

    def encode(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to the average of the last map, ``(B, 32 width)``."""
        return self.feature_maps(images)[-1].mean(dim=(2, 3))

    def forward(self, images: Tensor) -> ModelOutput:
        """``stem`` and ``stage_1`` to ``stage_4`` (maps), ``pooled``, and ``logits (B, N)`` with a classifier."""
        names = ("stem", "stage_1", "stage_2", "stage_3", "stage_4")
        info = dict(zip(names, self.feature_maps(images), strict=True))
        info["pooled"] = info["stage_4"].mean(dim=(2, 3))
        return ModelOutput(None if self.fc is None else self.fc(info["pooled"]), None, info)

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """From torchvision's (or timm's) names, sizes read from the tensors.

        ``config`` may hold constructor arguments, which go before (``num_classes=None`` drops the classifier).

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit.
        """
        state = tensors_of(source)
        return super().from_original(with_batch_counters(strip_prefix(state, "module.")), config, layout=layout)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the tensors; what ``config`` says goes before."""
        found = resnet_sizes(state)
        found["num_classes"] = state["fc.weight"].shape[0] if "fc.weight" in state else None
        return found | dict(config or {})

    def original_rules(self, state: Mapping[str, Tensor] | None, layout: str | None) -> tuple[list[Rule], Any]:
        """Every name is its own original."""
        return resnet_rules(self, "", ""), lambda key: self.fc is None and key.startswith("fc.")


def resnet_sizes(state: Mapping[str, Tensor], prefix: str = "", names: Sequence[str] = ()) -> dict[str, Any]:
    """``depths`` and ``width`` from tensors whose stages are called ``names`` (``layer1`` to ``layer4``).

    Raises:
        ValueError: If there are no bottleneck blocks.
    """
    names = tuple(names) or ("layer1", "layer2", "layer3", "layer4")
    depths = [
        sum(key.startswith(f"{prefix}{name}.") and key.endswith(".conv3.weight") for key in state) for name in names
    ]
    first = f"{prefix}{names[0]}.0.conv1.weight"
    if not all(depths) or first not in state:
        raise ValueError(f"a ResNet of bottleneck blocks has {first} and conv3 in every stage; blocks found: {depths}")
    return {"depths": depths, "width": state[first].shape[0]}


def resnet_rules(model: ResNet, ours: str, theirs: str, renamed: Mapping[str, str] | None = None) -> list[Rule]:
    """Rules for all of a ResNet's tensors under two prefixes; ``renamed`` maps a first name (``layer1``) to another."""
    rules = []
    for key in model.state_dict():
        first, rest = key.split(".", 1)
        rules.append(Rule(f"{ours}{key}", (f"{theirs}{(renamed or {}).get(first, first)}.{rest}",)))
    return rules


def with_batch_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With a zero ``num_batches_tracked`` beside every ``running_mean`` that lacks one: old files have none."""
    counters = {
        key.removesuffix("running_mean") + "num_batches_tracked": torch.zeros((), dtype=torch.long)
        for key in state
        if key.endswith("running_mean")
    }
    return {**counters, **state}


def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50: 25,557,032 parameters."""
    return ResNet(**{"depths": (3, 4, 6, 3), **kwargs})


def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101: 44,549,160 parameters."""
    return ResNet(**{"depths": (3, 4, 23, 3), **kwargs})


def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152: 60,192,808 parameters."""
    return ResNet(**{"depths": (3, 8, 36, 3), **kwargs})


def resnet_tiny(**kwargs: Any) -> ResNet:
    """One block a stage, 8 channels in the stem."""
    return ResNet(**{"depths": (1, 1, 1, 1), "width": 8, "num_classes": 10, **kwargs})
