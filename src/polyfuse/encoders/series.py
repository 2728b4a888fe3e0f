"""A sensor series to one vector: masked 1-D convolutions over values and their mask.

Shapes: B batch, T time steps, C channels, D embedding width. Masks: True = present.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.encoders.sequence import MaskedConvStack, stages_for


class SeriesCNN(nn.Module):
    """1-D CNN over a multichannel series with gaps.

    Steps outside the mask are ignored, NaN there included; the mask is one more input channel, so that the network
    knows a gap from a zero. Longer padding gives the same output.

    Args:
        embed_dim: Width D of the output.
        channels: Channels C of the series.
        length: Usual number of steps; sets only how often the length is halved.
        hidden_dim: Channels of the first stage; doubled per stage, four times at most.
        dropout: On the pooled features.

    Example:
        >>> encoder = SeriesCNN(8, channels=3, length=20)
        >>> encoder({"values": torch.zeros(2, 20, 3), "mask": torch.ones(2, 20, dtype=torch.bool)}).shape
        torch.Size([2, 8])
    """

    modality_type = "series"

    def __init__(
        self,
        embed_dim: int,
        *,
        channels: int,
        length: int = 64,
        hidden_dim: int = 32,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stack = MaskedConvStack(
            channels + 1,
            embed_dim,
            hidden_dim=hidden_dim,
            max_dim=4 * hidden_dim,
            num_stages=stages_for(length),
            dropout=dropout,
            **factory,
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``values (B, T, C)`` float, ``mask (B, T)`` bool.
            - returns ``(B, D)``.
        """
        mask_BT = inputs["mask"]
        values_BTC = inputs["values"].to(self.stack.project.weight.dtype).masked_fill(~mask_BT[..., None], 0.0)
        return self.stack(torch.cat([values_BTC, mask_BT[..., None].to(values_BTC.dtype)], dim=-1), mask_BT)
