import pytest
import torch
from torch import Tensor

from polyfuse.fusion.aecf import AECFFusion
from polyfuse.layers import EntropyGate, FusionPool

NAMES, WIDTHS, B = ("text", "image", "audio"), {"text": 5, "image": 7, "audio": 3}, 11


def batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(B, 3, generator=generator) < 0.6
    present[2] = False
    return {name: torch.randn(B, width, generator=generator) for name, width in WIDTHS.items()}, present


def build(**kwargs: object) -> AECFFusion:
    torch.manual_seed(1)
    return AECFFusion(NAMES, WIDTHS, 8, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", ["attention", "mlp"])
@pytest.mark.parametrize("policy", ["inverse_entropy", "entropy", "uniform", "dominance"])
def test_training_drops_at_the_target_rate_and_evaluation_does_not(gate: str, policy: str) -> None:
    fusion = build(gate=gate, policy=policy, target_rate=0.5)
    embeddings, present = batch()
    torch.manual_seed(2)
    rates = [fusion.train()(embeddings, present).info["mask_rate"] for _ in range(200)]
    can_drop = present.sum(-1) > 1
    assert not torch.stack(rates)[:, ~can_drop].any()
    realised = torch.stack(rates)[:, can_drop].mean().item()
    assert 0.3 < realised < 0.5  # .5 less what the survivor rule gives back
    outputs = [fusion.eval()(embeddings, present) for _ in range(2)]
    assert torch.equal(outputs[0].fused, outputs[1].fused)
    assert not outputs[0].info["mask_rate"].any()
    assert isinstance(fusion.pool, FusionPool if gate == "attention" else EntropyGate)


def test_weights_and_drop_are_in_the_order_of_modalities() -> None:
    """Inside, names are sorted; outside, columns follow the constructor."""
    fusion = build(policy="uniform", target_rate=0.8).train()
    embeddings, present = batch()
    torch.manual_seed(0)
    out = fusion(embeddings, present)
    assert out.weights is not None
    assert not out.weights[~present].any()
    assert not (out.info["drop"] & ~present).any()
    kept = present & ~out.info["drop"]
    assert torch.equal(out.weights > 0, kept)
    torch.testing.assert_close(fusion.eval()(embeddings, kept).fused, out.fused)
    torch.testing.assert_close(out.weights.sum(-1), present.any(-1).float())


def test_the_ramp_starts_without_dropping() -> None:
    fusion = build(policy="uniform", target_rate=0.9).train()
    embeddings, present = batch()
    fusion.set_progress(0.0)
    assert not fusion(embeddings, present).info["drop"].any()
    fusion.set_progress(1.0)
    assert fusion(embeddings, present).info["drop"].any()


def test_entropy_is_attached_and_statistics_only_is_possible() -> None:
    fusion = build(apply_mask=False).train()
    embeddings, present = batch()
    out = fusion(embeddings, present)
    assert not out.info["drop"].any()
    out.info["entropy"].sum().backward()
    assert fusion.pool.query.grad.any()
    assert {"entropy", "target_entropy", "mask_rate", "empty", "drop", "attention_weights"} <= set(out.info)


@pytest.mark.parametrize("gate", ["attention", "mlp"])
def test_every_parameter_trains(gate: str) -> None:
    fusion = build(gate=gate, policy="uniform", target_rate=0.3).train()
    embeddings, present = batch()
    torch.manual_seed(0)
    out = fusion(embeddings, present)
    out.fused.square().sum().backward()
    out = fusion(embeddings, present)
    (out.fused * torch.randn_like(out.fused)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gate": "cnn"}, "gate must be 'attention' or 'mlp', got 'cnn'"),
        ({"gate": "mlp", "num_heads": 2}, "no heads and no attention dropout, got num_heads = 2, dropout = 0.0"),
        ({"policy": "rfc"}, "policy must be one of .*got 'rfc'"),
        ({"target_rate": 2.0}, r"target_rate must be in \[0, 1\] or None, got 2.0"),
        ({"project": False}, "project=False needs embeddings of width out_dim = 8, got {'text': 5"),
        ({"num_heads": 3}, r"embed_dim \(8\) must be divisible by num_heads \(3\)"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(**arguments)


def test_repr_warns_about_the_default_policy() -> None:
    assert "hardly drops anything while attention is near uniform" in repr(build())
    assert "hardly" not in repr(build(target_rate=0.5))
