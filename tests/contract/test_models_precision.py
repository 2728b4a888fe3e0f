"""Token-level models: half precision, autocast, float64, gradients, other devices."""

from typing import Any

import pytest
import torch


def inputs(case: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, torch.Tensor]:
    present = case.masks()
    return case.tokens(len(present), dtype), case.token_mask(len(present)), present


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_modules(token_case: Any, mode: bool, dtype: torch.dtype) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    expected = token_case.run(model.eval(), x, mask, present).logits
    model.to(dtype).train(mode)
    out = token_case.run(model, {n: v.to(dtype).requires_grad_() for n, v in x.items()}, mask, present)
    assert out.logits.dtype == out.pooled.dtype == dtype
    if not mode:  # masks of dropout differ between dtypes
        # About a dozen residual steps, each rounded: 16 units in the last place of numbers around one.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.logits.float(), expected, atol=16 * eps, rtol=16 * eps)
    out.logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(token_case: Any, mode: bool, dtype: torch.dtype) -> None:
    model = token_case.build().train(mode)
    given = inputs(token_case)
    expected = token_case.run(model.eval(), *given).logits
    model.train(mode)
    with torch.autocast("cpu", dtype=dtype):
        out = token_case.run(model, *given)
    if not mode:
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.logits.float(), expected, atol=16 * eps, rtol=16 * eps)
    out.logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_float64_is_kept(token_case: Any) -> None:
    model = token_case.build(dtype=torch.float64).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    out = model(*inputs(token_case, torch.float64))
    floats = [out.logits, *(v for v in out.info.values() if v.is_floating_point())]
    assert {v.dtype for v in floats} == {torch.float64}
    assert out.weights is None or out.weights.dtype == torch.float64


def test_gradients_are_those_of_finite_differences(token_case: Any) -> None:
    model = token_case.build(dtype=torch.float64, num_layers=2).eval()
    x, mask, present = inputs(token_case, torch.float64)
    rows = slice(2, 4)
    leaves = {n: v[rows].clone().requires_grad_() for n, v in x.items()}
    mask = {n: v[rows] for n, v in mask.items()}

    def logits(*values: torch.Tensor) -> torch.Tensor:
        return model(dict(zip(leaves, values, strict=True)), mask, present[rows]).logits

    torch.autograd.gradcheck(logits, tuple(leaves.values()), fast_mode=True)


def test_parameters_on_another_device(token_case: Any) -> None:
    assert {p.device.type for p in token_case.build(device="meta").parameters()} == {"meta"}
