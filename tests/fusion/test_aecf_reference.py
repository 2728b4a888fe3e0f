"""The published AECF is inert: its masks and its entropy loss reach nothing. Equal to aecf 0.1.0 bit for bit."""

import copy

import pytest
import torch
from torch import Tensor

from polyfuse.fusion import FUSIONS, AECFFusion, AttentionPoolFusion
from polyfuse.losses import EntropyRegularizer
from polyfuse.studies.aecf_reference import AecfReference

WIDTHS = {"b": 3, "a": 5, "c": 2}
NAMES = tuple(WIDTHS)


def make(**kwargs: object) -> tuple[AecfReference, dict[str, Tensor]]:
    torch.manual_seed(0)
    fusion = AecfReference(NAMES, WIDTHS, 12, num_heads=3, **kwargs)
    return fusion, {name: torch.randn(7, width) for name, width in WIDTHS.items()}


def test_is_a_control_and_no_fusion_to_choose() -> None:
    assert AecfReference not in FUSIONS.values()


@pytest.mark.parametrize("probability", [0.15, 1.0])
def test_masks_reach_no_output_and_no_gradient(probability: float) -> None:
    fusion, x = make(base_mask_prob=probability)
    quiet = copy.deepcopy(fusion).eval()
    outs = [fusion.train()(x) for _ in range(2)]
    expected = quiet(x)
    assert (outs[0].info["mask_rate"] > 0).any()
    assert not torch.equal(outs[0].info["masked_attention_weights"], outs[1].info["masked_attention_weights"])
    for out in outs:
        assert torch.equal(out.fused, expected.fused)
    outs[0].fused.square().sum().backward()
    expected.fused.square().sum().backward()
    for a, b in zip(fusion.parameters(), quiet.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_entropy_loss_has_no_gradient_and_ours_has() -> None:
    fusion, x = make()
    present = torch.ones(7, 3, dtype=torch.bool)
    info = fusion.train()(x).info
    assert not info["entropy"].requires_grad
    assert not EntropyRegularizer(0.1)(info["entropy"], present).requires_grad
    torch.manual_seed(0)
    ours = AECFFusion(NAMES, WIDTHS, 12, num_heads=3, policy="uniform", target_rate=0.5).train()
    info = ours(x).info
    EntropyRegularizer(0.1)(info["entropy"], present).backward()
    assert ours.project["a"].get_parameter("weight").grad.any()
    assert not torch.equal(ours(x).fused, ours.eval()(x).fused)


def test_is_the_unmasked_attention_pool_and_deaf_to_presence() -> None:
    fusion, x = make(base_mask_prob=1.0)
    pool = AttentionPoolFusion(NAMES, WIDTHS, 12, num_heads=3)
    names = {"query": "pool.query"} | {
        f"attention.{k}": f"pool.pool.attention.{k}" for k in fusion.attention.state_dict()
    }
    own = {names.get(key, key): value for key, value in fusion.state_dict().items()}
    pool.load_state_dict({**pool.state_dict(), **own})
    torch.testing.assert_close(fusion.train()(x).fused, pool.eval()(x).fused)
    torch.testing.assert_close(fusion(x).weights, pool(x).weights)
    present = torch.tensor([[True, False, True]] * 7)
    emptied = {**x, "a": torch.zeros_like(x["a"])}
    assert torch.equal(fusion(x, present).fused, fusion(emptied).fused)
    assert (fusion(x, present).weights[:, 1] > 0.05).all()  # the pool of polyfuse gives exactly 0
    assert not pool(x, present).weights[:, 1].any()


def test_one_modality_is_left_alone() -> None:
    fusion = AecfReference(("a",), 4).train()
    info = fusion({"a": torch.randn(3, 4)}).info
    assert not info["mask_rate"].any()


@pytest.mark.parametrize("min_active", [1, 2])
def test_equals_the_package_bit_for_bit(min_active: int) -> None:
    aecf = pytest.importorskip("aecf")
    fusion, x = make(base_mask_prob=0.9, min_active=min_active)
    masking = aecf.CurriculumMasking(0.9, min_active=min_active)
    theirs = aecf.MultimodalAttentionPool(12, 3, curriculum_masking=masking)
    theirs.attention.load_state_dict(fusion.attention.state_dict())
    tokens = torch.stack([fusion.norm[name](fusion.project[name](x[name])) for name in "abc"], dim=1)
    for mode in (True, False):
        torch.manual_seed(3)
        expected, info = theirs.train(mode)(fusion.query.expand(7, -1, -1), tokens, return_info=True)
        torch.manual_seed(3)
        out = fusion.train(mode)(x)
        assert torch.equal(out.fused, expected[:, 0])
        masked = info["masked_attention_weights"][:, 0][:, [1, 0, 2]]  # sorted names to the order of modalities
        assert torch.equal(out.info["masked_attention_weights"], masked)
        for key in ("entropy", "mask_rate"):
            assert torch.equal(out.info[key], info[key][:, 0])


def test_golden_numbers_of_the_package() -> None:
    """``aecf.CurriculumMasking(0.9)`` in training, seed 3: written down for where the package is not installed."""
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.98, 0.01, 0.01], [0.3, 0.3, 0.4]])
    fusion, _ = make(base_mask_prob=0.9)
    torch.manual_seed(3)
    masked, info = fusion.train().curriculum(weights)
    expected = [[0.4, 0.6, 0.0], [0.8571428, 0.0, 0.1428571], [0.98, 0.01, 0.01], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(masked, torch.tensor(expected))
    torch.testing.assert_close(info["entropy"], torch.tensor([1.0296531, 0.8979458, 0.1119020, 1.0889001]))
    torch.testing.assert_close(info["mask_rate"], torch.tensor([1 / 3, 1 / 3, 0.0, 2 / 3]))
    torch.testing.assert_close(info["target_entropy"], torch.full((4,), 0.7690286))
