"""LateFusion: logarithmic opinion pool of unimodal decisions."""

import pytest
import torch

from polyfuse.fusion import LateFusion

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[LateFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = LateFusion(("c", "a", "b"), {"a": 3, "b": 5, "c": 2}, 7, **kwargs).eval()
    return fusion, {"a": torch.randn(4, 3), "b": torch.randn(4, 5), "c": torch.randn(4, 2)}


def test_mean_is_the_normalised_geometric_mean_of_the_present_predictions() -> None:
    fusion, x = make()
    out = fusion(x, PRESENT)
    alone = {name: fusion.heads[name](x[name]).softmax(dim=1) for name in x}
    for row, names in enumerate(["cab", "cb", "b"]):
        product = torch.stack([alone[name][row] for name in names]).prod(dim=0) ** (1 / len(names))
        torch.testing.assert_close(out.fused[row].softmax(dim=0), product / product.sum())
    assert not out.fused[3].any()


def test_sum_is_the_product_of_experts() -> None:
    fusion, x = make(reduction="sum", hidden=0)
    out = fusion(x, PRESENT)
    torch.testing.assert_close(out.fused[1], fusion.heads["c"](x["c"][1]) + fusion.heads["b"](x["b"][1]))


def test_unimodal_decisions_are_returned_in_the_order_of_modalities() -> None:
    fusion, x = make()
    logits = fusion(x, PRESENT).info["modality_logits"]
    torch.testing.assert_close(logits[0, 0], fusion.heads["c"](x["c"])[0])
    torch.testing.assert_close(logits[0, 2], fusion.heads["b"](x["b"])[0])
    assert not logits[~PRESENT].any()


def test_is_decision_level_and_hidden_zero_is_linear() -> None:
    assert LateFusion.decision_level
    fusion, _ = make(hidden=0)
    assert isinstance(fusion.heads["a"], torch.nn.Linear)
    assert make(hidden=11)[0].heads["a"][0].out_features == 11


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="'median'"):
        LateFusion(("a",), 3, 2, reduction="median")
