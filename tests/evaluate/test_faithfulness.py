"""Removal of tokens against models of which it is known what they need, and rollout against plain products."""

import math

import pytest
import torch

from polyfuse.evaluate.attention_flow import CROSS_MODAL, attention_flow
from polyfuse.evaluate.faithfulness import Removal, chosen, faithfulness, removal
from polyfuse.models.multimodal_transformer import MultimodalTransformer

B, P, T, D = 5, 3, 7, 8
MASKS = {
    "image": torch.tensor([[True] * 3, [True, True, False], [True] * 3, [False, True, True], [True] * 3]),
    "text": torch.arange(T) < torch.tensor([7, 5, 3, 2, 6])[:, None],
}


def tokens(seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(B, mask.shape[1], D, generator=draws) for name, mask in MASKS.items()}


def model_of(fusion: str, layers: int = 4) -> MultimodalTransformer:
    torch.manual_seed(3)
    model = MultimodalTransformer(
        ("text", "image"), D, fusion=fusion, dim=D, num_layers=layers, num_heads=2, dropout=0.0
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv" in name or "query" in name or "key" in name:
                parameter.mul_(6)  # sharp maps
    return model.eval()


@pytest.mark.parametrize("fusion", sorted(CROSS_MODAL | {"late"}))
def test_shares_of_present_tokens_sum_to_one(fusion: str) -> None:
    model, given = model_of(fusion), tokens(0)
    flow = attention_flow(model, lambda: model(given, MASKS), MASKS)
    for name, mask in MASKS.items():
        rows = flow.streams[name][mask]
        assert (rows >= 0).all()
        expected = torch.ones(len(rows))
        if fusion == "bottleneck":  # shared tokens begin with nothing of the inputs, which dilutes them
            assert (rows.sum(dim=1) <= 1 + 1e-5).all()
        else:
            torch.testing.assert_close(rows.sum(dim=1), expected)
    crossed = flow.read_by("text", "image")
    assert crossed.shape == (B, P)
    assert not crossed[~MASKS["image"]].any()
    if fusion == "late":
        assert not crossed.any()
        assert flow.last_read_by("text", "image") is None
    else:
        assert (crossed[MASKS["image"]] > 0).all()


def test_early_rollout_is_the_product_of_the_maps() -> None:
    model, given = model_of("early", layers=3), tokens(1)
    flow = attention_flow(model, lambda: model(given, MASKS), MASKS)
    maps = model(given, MASKS, return_attention=True).attentions
    expected = torch.eye(P + T).expand(B, -1, -1)
    for weights in maps.values():
        expected = (0.5 * weights.mean(dim=1) + 0.5 * torch.eye(P + T)) @ expected
    torch.testing.assert_close(torch.cat([flow.streams["image"], flow.streams["text"]], dim=1), expected)
    last = list(maps.values())[-1].mean(dim=1)[:, P:, :P]
    there = MASKS["text"][..., None]
    torch.testing.assert_close(flow.last_read_by("text", "image"), (last * there).sum(dim=1) / there.sum(dim=1))


def test_cross_reads_the_other_tower_as_it_was() -> None:
    model, given = model_of("cross", layers=2), tokens(2)  # one layer alone, one that reads, one behind it
    flow = attention_flow(model, lambda: model(given, MASKS), MASKS)
    maps = {k: v.mean(dim=1) for k, v in model(given, MASKS, return_attention=True).attentions.items()}
    image = 0.5 * torch.eye(P) + 0.5 * maps["towers.layers.image.0.attention"]
    text = 0.5 * torch.eye(T) + 0.5 * maps["towers.layers.text.0.attention"]
    read = 0.5 * maps["strategy.layers.image.text.0.context_attention"] @ image
    after = 0.5 * torch.eye(T) + 0.5 * maps["strategy.after.text.0.attention"]
    expected = torch.cat([after @ read, after @ (0.5 * text)], dim=2)
    torch.testing.assert_close(flow.streams["text"], expected)


def test_adaptive_shares_follow_the_gates() -> None:
    model, given = model_of("adaptive", layers=1), tokens(3)
    flow = attention_flow(model, lambda: model(given, MASKS), MASKS)
    output = model(given, MASKS, return_attention=True)
    gates = output.info["text_gates"]  # columns as the model names them: text, image
    read = output.attentions["strategy.layers.0.read.image"].mean(dim=1)[:, P:]
    there = MASKS["text"]
    torch.testing.assert_close(flow.streams["text"][..., :P][there], (0.5 * gates[..., 1:] * read)[there])


def test_rows_without_a_modality_are_refused() -> None:
    model, given = model_of("co"), tokens(4)
    empty = {**MASKS, "image": MASKS["image"] & (torch.arange(B) > 0)[:, None]}
    with pytest.raises(ValueError, match="both modalities are present"):
        attention_flow(model, lambda: model(given, empty), empty)
    with pytest.raises(ValueError, match="'graph'"):
        attention_flow(model_of("graph"), lambda: None, MASKS)


def needs_first(keep: torch.Tensor) -> torch.Tensor:
    """Right where the first token is left; the probability is the share of tokens left."""
    return torch.stack([keep[:, 0].float(), keep.float().mean(dim=1)], dim=1)


def test_a_true_map_gains_and_a_false_one_loses() -> None:
    mask = torch.tensor([[True] * 7] * 11 + [[True] + [False] * 6])
    draws = torch.rand(12, 5, 7, generator=torch.Generator().manual_seed(0))
    honest = torch.zeros(12, 7)
    honest[:, 0] = 1.0
    for weights, sign in ((honest, 1), (-honest, -1)):
        found = faithfulness(removal(needs_first, weights, mask, 2, draws))
        assert found.rows == 11  # the last has one token, which must not be removed
        assert (found.top_drop.mean, found.least_drop.mean) == ((1.0, 0.0) if sign > 0 else (0.0, 1.0))
        assert sign * found.gain.mean > 0
        assert found.random_drop.mean == pytest.approx(
            float((draws[:11].argsort(dim=2, descending=True)[..., :2] == 0).any(dim=2).float().mean())
        )


def test_a_map_that_says_nothing_gains_nothing_where_tokens_are_alike() -> None:
    mask = torch.ones(11, 5, dtype=torch.bool)
    draws = torch.rand(11, 3, 5, generator=torch.Generator().manual_seed(1))
    found = faithfulness(removal(needs_first, torch.rand(11, 5), mask, 2, draws), 1)
    assert found.gain == pytest.approx((0.0, 0.0, 0.0, 1.0), abs=1e-6)
    assert found.top_drop.mean == pytest.approx(0.4)


def test_what_cannot_be_is_refused() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        chosen(torch.rand(2, 3), mask, 0)
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(2, 3\)"):
        chosen(torch.rand(2, 4), mask, 1)
    with pytest.raises(ValueError, match="random draws"):
        faithfulness(removal(needs_first, torch.rand(2, 3), mask, 1))
    nothing = torch.full((2, 1), math.nan)
    with pytest.raises(ValueError, match="no row"):
        faithfulness(Removal(nothing, nothing, nothing, nothing[:, None]))
