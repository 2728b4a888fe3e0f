"""Token-level models: torch.compile without graph breaks or recompiles, and torch.export, with a dynamic batch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

SIZES = (6, 11)  # other than 0 and 1, which compilers treat as constants
NAMES = ("text", "image")  # what is traced grows with the pairs; three modalities are in the other tests


def build(case: Any) -> torch.nn.Module:
    if case.name in ("cross-directed", "graph-edges"):
        pytest.skip("names three modalities")
    return case.build(NAMES, num_layers=2 if case.name == "bottleneck" else 1, max_length=None)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(case: Any, size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    present = torch.rand(size, 2, generator=torch.Generator().manual_seed(size)) < 0.6
    return case.tokens(size, names=NAMES), case.token_mask(size, NAMES), present


def mark(x: dict[str, torch.Tensor], mask: dict[str, torch.Tensor], present: torch.Tensor) -> None:
    for tensor in (*x.values(), *mask.values(), present):
        torch._dynamo.mark_dynamic(tensor, 0)  # unlike dynamic=True: an error if the batch size becomes a constant


def test_compiles_whole_in_training(token_case: Any) -> None:
    if "-" in token_case.name:
        pytest.skip("an option of a strategy; in evaluation below")  # tracing a training step takes seconds
    model = build(token_case).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        given = batch(token_case, size)
        mark(*given)
        with torch.compiler.set_stance("default" if size == SIZES[0] else "fail_on_recompile"):
            model.zero_grad()
            out = token_case.run(compiled, *given)
            out.logits.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        expected = token_case.run(model, *given)
        expected.logits.square().sum().backward()
        torch.testing.assert_close(out.logits, expected.logits)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_compiles_whole_in_eval(token_case: Any) -> None:
    model = build(token_case).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        given = batch(token_case, size)
        mark(*given)
        with torch.compiler.set_stance("default" if size == SIZES[0] else "fail_on_recompile"):
            out = compiled(*given)
        expected = model(*given)
        torch.testing.assert_close(out.logits, expected.logits)
        assert expected.weights is None or torch.allclose(out.weights, expected.weights, atol=1e-6)


def test_exports_with_a_dynamic_batch(token_case: Any) -> None:
    model = build(token_case).eval()
    size = torch.export.Dim("batch", min=1, max=4096)
    named = {name: {0: size} for name in model.modalities}
    shapes = {"tokens": named, "token_mask": named, "present": {0: size}}
    program = torch.export.export(model, batch(token_case, SIZES[0]), dynamic_shapes=shapes, strict=False)
    for rows in (1, *SIZES):
        given = batch(token_case, rows)
        out, expected = program.module()(*given), model(*given)
        torch.testing.assert_close(out.logits, expected.logits)
        assert expected.weights is None or torch.allclose(out.weights, expected.weights, atol=1e-6)
