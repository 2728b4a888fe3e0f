"""Half precision, autocast, float64 and gradients, over every fusion."""

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_modules(case: Any, mode: bool, dtype: torch.dtype) -> None:
    fusion, present = case.build().train(mode), case.masks()
    x = case.embeddings(len(present))
    expected = case.run(fusion, x, present).fused
    fusion.to(dtype)
    out = case.run(fusion, {n: v.to(dtype).requires_grad_() for n, v in x.items()}, present)
    assert out.fused.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(out.fused.float(), expected, atol=tolerance, rtol=8 * torch.finfo(dtype).eps)
    out.fused.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_autocast(case: Any, mode: bool) -> None:
    model, present = case.model().train(mode), case.masks()
    inputs = {n: torch.randn(len(present), 2) for n in model.modalities}
    expected = case.run(model, inputs, present).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.run(model, inputs, present)
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(
        out.logits.float(), expected, atol=8 * eps * max(1.0, expected.abs().max().item()), rtol=8 * eps
    )
    out.logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_float64_is_kept(case: Any) -> None:
    fusion = case.build(dtype=torch.float64).eval()
    assert {p.dtype for p in fusion.parameters()} == {torch.float64}
    out = fusion(case.embeddings(5, torch.float64), torch.ones(5, 3, dtype=torch.bool))
    assert out.fused.dtype == torch.float64
    assert out.weights is None or out.weights.dtype == torch.float64


def test_gradients_are_those_of_finite_differences(case: Any) -> None:
    fusion = case.build(dtype=torch.float64).eval()
    present = case.masks()[1:4]
    x = {n: v.requires_grad_() for n, v in case.embeddings(3, torch.float64).items()}
    torch.autograd.gradcheck(lambda *v: fusion(dict(zip(x, v, strict=True)), present).fused, tuple(x.values()))


def test_parameters_on_another_device(case: Any) -> None:
    assert {p.device.type for p in case.build(device="meta").parameters()} == {"meta"}
