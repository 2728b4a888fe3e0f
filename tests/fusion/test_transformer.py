"""TransformerFusion against torch.nn's transformer layer, and masking that equals absence."""

import pytest
import torch
from torch import nn

from polyfuse.fusion import TransformerFusion
from polyfuse.fusion.attention_block import AttentionBlock

WIDTHS = {"a": 2, "b": 3, "c": 5}
NAMES = ("c", "a", "b")


def make(**kwargs: object) -> tuple[TransformerFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = TransformerFusion(NAMES, WIDTHS, 12, **{"num_heads": 3, **kwargs}).eval()
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


def as_torch(block: AttentionBlock) -> nn.TransformerEncoderLayer:
    """PyTorch's own layer with the weights of ``block``."""
    width = block.out.in_features
    layer = nn.TransformerEncoderLayer(
        width, block.num_heads, block.mlp[1].out_features, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
    )
    attention = layer.self_attn
    pairs = [(layer.norm1, block.norm), (layer.norm2, block.mlp[0]), (layer.linear1, block.mlp[1])]
    for theirs, ours in [*pairs, (layer.linear2, block.mlp[3]), (attention.out_proj, block.out)]:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
    return layer.train()  # without dropout the same as eval, and without its fast path


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_torch(num_layers: int) -> None:
    fusion, x = make(num_layers=num_layers)
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    types = fusion.type_embedding.weight
    tokens = [fusion.norm[n](fusion.project[n](x[n])) + types[1 + i] for i, n in enumerate("abc")]
    z = torch.stack([types[0].expand(4, -1), *tokens], dim=1)
    ignore = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~present[:, [1, 2, 0]]], dim=1)
    for layer in fusion.layers:
        z = as_torch(layer)(z, src_key_padding_mask=ignore)
    torch.testing.assert_close(fusion(x, present).fused, fusion.final(z[:, 0]), atol=1e-5, rtol=1e-5)


def test_a_subset_equals_a_transformer_built_for_it() -> None:
    fusion, x = make()
    pair = TransformerFusion(("b", "c"), WIDTHS, 12, num_heads=3).eval()
    state = {k: v for k, v in fusion.state_dict().items() if ".a." not in k and not k.startswith(("type", "_extra"))}
    pair.load_state_dict(state, strict=False)
    with torch.no_grad():
        pair.type_embedding.weight.copy_(fusion.type_embedding.weight[[0, 2, 3]])
    present = torch.tensor([[True, False, True]] * 4)
    torch.testing.assert_close(fusion(x, present).fused, pair(x).fused)


def test_missing_tokens_are_read_and_train() -> None:
    present = torch.tensor([[True, False, True]] * 4)
    for tokens in (False, True):
        fusion, x = make(missing_tokens=tokens)
        assert (fusion.token is not None) == tokens
        fusion(x, present).fused.square().mul(torch.arange(12.0)).sum().backward()
        if tokens:
            assert fusion.token["a"].weight.grad.any()
            assert not fusion.token["b"].weight.grad.any()


def test_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads must divide the width 12, got 5"):
        make(num_heads=5)
    with pytest.raises(ValueError, match="num_layers must be positive, got 0"):
        make(num_layers=0)
