"""A mono recording to one vector: log-mel in torch, then masked 1-D convolutions over time.

Shapes: B batch, N samples, T frames, F mel bands, D embedding width. Masks: True = present.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.encoders.sequence import MaskedConvStack, stages_for

_FLOOR = 1e-8  # power of a full-scale sine is about 0.25; 16-bit rounding noise lies near 1e-10


class LogMel(nn.Module):
    """Log power in mel bands, in float32 whatever the model's precision.

    Hann window, power spectrum divided by the window's length and energy, triangles of height 1 on the HTK mel scale
    (mel = 2595 log10(1 + f / 700)), natural logarithm with a floor of 1e-8. Frames are not centred: frame t covers
    samples ``t * hop .. t * hop + window - 1``. No parameter and no buffer: window and triangles are cheap to make.

    Args:
        rate: Samples per second.
        num_mels: Bands F between 20 Hz and half the rate.
        window_seconds: Length of a frame.
        hop_seconds: Distance of two frames.

    Raises:
        ValueError: If there are so many bands that the lowest would be empty.
    """

    def __init__(
        self, rate: int, *, num_mels: int = 40, window_seconds: float = 0.025, hop_seconds: float = 0.010
    ) -> None:
        super().__init__()
        self.rate = rate
        self.num_mels = num_mels
        self.window = max(2, round(rate * window_seconds))
        self.hop = max(1, round(rate * hop_seconds))
        low, high = _mel(20.0), _mel(rate / 2)
        self.edges = [_hertz(low + (high - low) * k / (num_mels + 1)) for k in range(num_mels + 2)]
        if self.edges[2] - self.edges[0] <= rate / self.window:
            raise ValueError(
                f"num_mels must leave every band a bin of {rate / self.window:.0f} Hz, got {num_mels} at {rate} Hz; "
                "take fewer"
            )

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of ``samples`` samples: at least 1."""
        return 1 + max(0, samples - self.window) // self.hop

    def triangles(self, device: torch.device | None = None) -> Tensor:
        """``(window // 2 + 1, F)`` filter bank."""
        edges = torch.tensor(self.edges, device=device)
        bins = torch.arange(self.window // 2 + 1, device=device)[:, None] * (self.rate / self.window)
        up = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        down = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        return torch.minimum(up, down).clamp(min=0.0)

    def forward(self, wave: Tensor) -> Tensor:
        """``(B, N)`` in [-1, 1] to ``(B, T, F)`` float32."""
        wave = nn.functional.pad(wave.float(), (0, max(0, self.window - wave.shape[1])))
        hann = torch.hann_window(self.window, device=wave.device)
        spectrum = torch.view_as_real(torch.fft.rfft(wave.unfold(1, self.window, self.hop) * hann)).flatten(2)
        # Real and imaginary parts lie side by side: with every filter row twice, one product squares, adds and weighs.
        weights = self.triangles(wave.device).repeat_interleave(2, dim=0) / (hann.square().sum() * self.window)
        return (spectrum * spectrum @ weights).clamp(min=_FLOOR).log()


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def _hertz(mel: float) -> float:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


class AudioCNN(nn.Module):
    """CNN over the log-mel spectrogram, mel bands as channels.

    Every clip's log-mel is centred on its own mean, so that loudness does not matter, and scaled by a constant; frames
    that begin after the clip's end are ignored.

    Args:
        embed_dim: Width D of the output.
        rate: Samples per second.
        samples: Usual length N in samples; sets only how often the length is halved.
        num_mels: Mel bands F.
        hidden_dim: Channels of the first stage; doubled once.
        dropout: On the pooled features.

    Example:
        >>> encoder = AudioCNN(8, rate=8000, samples=4000)
        >>> clips = {"wave": torch.zeros(2, 4000, dtype=torch.int16), "length": torch.tensor([4000, 0])}
        >>> encoder(clips).shape
        torch.Size([2, 8])
    """

    modality_type = "audio"

    def __init__(
        self,
        embed_dim: int,
        *,
        rate: int,
        samples: int,
        num_mels: int = 40,
        hidden_dim: int = 64,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.logmel = LogMel(rate, num_mels=num_mels)
        stages = stages_for(self.logmel.frames(samples))
        self.stack = MaskedConvStack(
            num_mels,
            embed_dim,
            hidden_dim=hidden_dim,
            max_dim=2 * hidden_dim,
            num_stages=stages,
            dropout=dropout,
            **factory,
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``wave (B, N)`` int16, ``length (B,)`` int64 end of each clip, in samples; ``start (B,)`` int64
              its first sample, 0 where left out.
            - returns ``(B, D)``.
        """
        x_BTF, mask_BT = self.features(inputs["wave"], inputs["length"], inputs.get("start"))
        return self.stack(x_BTF.to(self.stack.project.weight.dtype), mask_BT)

    def features(self, wave: Tensor, length: Tensor, begin: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Centred log-mel ``(B, T, F)`` and the mask ``(B, T)`` of the frames within the clip."""
        device = wave.device.type
        wave = wave.float() / 32768.0
        if torch.is_autocast_enabled(device):  # a power spectrum has no room for half a mantissa
            with torch.autocast(device, enabled=False):
                x_BTF = self.logmel(wave)
        else:
            x_BTF = self.logmel(wave)
        start = torch.arange(x_BTF.shape[1], device=wave.device) * self.logmel.hop
        mask_BT = start < length[:, None]
        if begin is not None:  # a recording that begins after the row's clock
            mask_BT = mask_BT & (start >= begin[:, None])
        kept = x_BTF.masked_fill(~mask_BT[..., None], 0.0)
        cells = mask_BT.sum(dim=1).clamp(min=1) * x_BTF.shape[2]
        mean = kept.sum(dim=(1, 2)) / cells
        return (x_BTF - mean[:, None, None]) / 4.0, mask_BT
