"""When a token happened, in seconds: what lets attention relate streams of different rates and offsets.

Shapes: B batch, T tokens, D width, P periods. Masks: True = present; absent tokens come out as zeros, whatever (NaN
included) stood there or in their times, and their gradient is zero.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


def time_features(seconds: Tensor, shortest: float, longest: float, num_periods: int) -> Tensor:
    """Sine and cosine of a time at P periods, log-spaced from ``shortest`` to ``longest``, in at least float32.

    A shift by d seconds turns every pair by an angle that does not depend on the time: ``f(t + d) = R(d) f(t)``. So a
    linear map of the features of two tokens can read how far apart they are, wherever they stand.
    Source: https://arxiv.org/abs/1706.03762, section 3.5, with seconds for positions and periods that are given.

    Shape:
        - seconds: any; returns ``(..., 2 P)``: P sines, then P cosines.

    Example:
        >>> time_features(torch.tensor([0.0, 0.25]), 1.0, 4.0, 2).shape
        torch.Size([2, 4])
    """
    step = (longest / shortest) ** (1.0 / max(num_periods - 1, 1))
    rates = [2.0 * math.pi / (shortest * step**k) for k in range(num_periods)]
    seconds = seconds if seconds.dtype == torch.float64 else seconds.float()
    phase = seconds[..., None] * torch.tensor(rates, dtype=seconds.dtype, device=seconds.device)
    return torch.cat((phase.sin(), phase.cos()), dim=-1)


class TimedTokens(NamedTuple):
    """One stream's tokens.

    Attributes:
        tokens: ``(B, T, D)``.
        times: ``(B, T)`` seconds; all streams of a row on one clock.
        mask: ``(B, T)`` bool.
    """

    tokens: Tensor
    times: Tensor
    mask: Tensor


class TimeEmbedding(nn.Module):
    """A learned linear map of ``time_features``, to be added to tokens.

    The features need no table and no largest time: any time, any rate, also between those of training. Give times that
    start near zero in each row (a float32 of today's Unix time is right to two minutes).

    Args:
        dim: Width D.
        shortest: Seconds of the quickest period: about twice the smallest difference that matters.
        longest: Seconds of the slowest: longer than the longest row.
        num_periods: P.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: Unless ``0 < shortest < longest`` and P is at least 2.

    Example:
        >>> TimeEmbedding(8)(torch.tensor([[0.0, 0.04, 2.5]])).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        shortest: float = 0.1,
        longest: float = 1000.0,
        num_periods: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < shortest < longest < math.inf:
            raise ValueError(f"periods must satisfy 0 < shortest < longest, got {shortest} and {longest} seconds")
        if num_periods < 2:
            raise ValueError(f"num_periods must be at least 2, got {num_periods}")
        self.shortest, self.longest, self.num_periods = shortest, longest, num_periods
        self.project = nn.Linear(2 * num_periods, dim, device=device, dtype=dtype)
        nn.init.normal_(self.project.weight, std=num_periods**-0.5)  # variance 1 out: times weigh as much as tokens

    def forward(self, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, T)`` seconds to ``(B, T, D)``; zeros outside ``mask (B, T)``.

        Raises:
            ValueError: If the mask does not fit.
        """
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != seconds.shape:
                raise ValueError(
                    f"mask must be bool of shape {tuple(seconds.shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            seconds = seconds.masked_fill(~mask, 0.0)
        features = time_features(seconds, self.shortest, self.longest, self.num_periods)
        embedded = self.project(features.to(self.project.weight.dtype))
        return embedded if mask is None else embedded.masked_fill(~mask[..., None], 0.0)

    def add_to(self, stream: TimedTokens) -> Tensor:
        """``(B, T, D)``: the stream's tokens with their times, zeros where absent."""
        tokens = stream.tokens.masked_fill(~stream.mask[..., None], 0.0)
        return tokens + self(stream.times, stream.mask).to(tokens.dtype)


class TimedStreams(nn.Module):
    """Named streams to what ``MultimodalTransformer`` takes: tokens that know their time, and the masks.

    One embedding for all streams, so that equal times look equal whichever stream they come from; each stream's tokens
    are brought to width D first.

    Args:
        input_dims: Width of each stream's tokens, by name.
        dim: Width D.
        shortest: See ``TimeEmbedding``.
        longest: See ``TimeEmbedding``.
        num_periods: See ``TimeEmbedding``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> streams = TimedStreams({"motion": 3, "sound": 5}, dim=8)
        >>> here = torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 11, dtype=torch.bool)
        >>> motion = TimedTokens(torch.zeros(2, 7, 3), torch.arange(7.0).expand(2, 7) / 50, here[0])
        >>> sound = TimedTokens(torch.zeros(2, 11, 5), torch.arange(11.0).expand(2, 11) / 100 + 0.3, here[1])
        >>> tokens, token_mask = streams({"motion": motion, "sound": sound})
        >>> tokens["sound"].shape, token_mask["sound"].shape
        (torch.Size([2, 11, 8]), torch.Size([2, 11]))
    """

    def __init__(
        self,
        input_dims: Mapping[str, int],
        dim: int,
        *,
        shortest: float = 0.1,
        longest: float = 1000.0,
        num_periods: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(input_dims)
        self.project = nn.ModuleDict(
            {name: nn.Linear(width, dim, device=device, dtype=dtype) for name, width in sorted(input_dims.items())}
        )
        self.time = TimeEmbedding(
            dim, shortest=shortest, longest=longest, num_periods=num_periods, device=device, dtype=dtype
        )

    def forward(self, streams: Mapping[str, TimedTokens]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``{name: TimedTokens}`` to ``{name: (B, T_m, D)}`` and ``{name: (B, T_m)}``.

        Raises:
            ValueError: If names are not those of the constructor.
        """
        if set(streams) != set(self.modalities):
            raise ValueError(f"streams must be {sorted(self.modalities)}, got {sorted(streams)}")
        tokens, masks = {}, {}
        for name, layer in self.project.items():
            stream = streams[name]
            clean = stream.tokens.masked_fill(~stream.mask[..., None], 0.0)
            tokens[name] = self.time.add_to(stream._replace(tokens=layer(clean)))
            masks[name] = stream.mask
        return tokens, masks
