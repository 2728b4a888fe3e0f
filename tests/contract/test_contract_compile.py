"""torch.compile without graph breaks or recompiles, and torch.export, over every fusion, with a dynamic batch."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Sizes other than 0 and 1, which compilers treat as constants.
SIZES = (6, 11)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(case: Any, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    inputs = {n: torch.randn(size, 2, generator=generator) for n in case.model().modalities}
    return inputs, torch.rand(size, 3, generator=generator) < 0.6


def test_compiles_whole_with_a_dynamic_batch_in_training(case: Any) -> None:
    model = case.model().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        inputs, present = batch(case, size)
        for x in (*inputs.values(), present):
            torch._dynamo.mark_dynamic(x, 0)  # unlike dynamic=True: an error if the batch size becomes a constant
        with torch.compiler.set_stance("default" if size == SIZES[0] else "fail_on_recompile"):
            model.zero_grad()
            out = case.run(compiled, inputs, present)
            out.logits.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        expected = case.run(model, inputs, present)
        expected.logits.square().sum().backward()
        torch.testing.assert_close(out.logits, expected.logits)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_compiles_whole_with_a_dynamic_batch_in_eval(case: Any) -> None:
    model = case.model().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        inputs, present = batch(case, size)
        for x in (*inputs.values(), present):
            torch._dynamo.mark_dynamic(x, 0)  # unlike dynamic=True: an error if the batch size becomes a constant
        with torch.compiler.set_stance("default" if size == SIZES[0] else "fail_on_recompile"):
            out = compiled(inputs, present)
        expected = model(inputs, present)
        torch.testing.assert_close(out.logits, expected.logits)
        assert expected.weights is None or torch.allclose(out.weights, expected.weights, atol=1e-6)


def test_exports_with_a_dynamic_batch(case: Any) -> None:
    model = case.model().eval()
    size = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"inputs": {name: {0: size} for name in model.modalities}, "present": {0: size}}
    program = torch.export.export(model, batch(case, SIZES[0]), dynamic_shapes=shapes, strict=False)
    for rows in (1, *SIZES):
        inputs, present = batch(case, rows)
        out, expected = program.module()(inputs, present), model(inputs, present)
        torch.testing.assert_close(out.logits, expected.logits)
        assert expected.weights is None or torch.allclose(out.weights, expected.weights, atol=1e-6)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # raised while inductor imports itself
def test_inductor_smoke() -> None:
    from polyfuse.fusion import GatedFusion

    torch.manual_seed(0)
    fusion = GatedFusion(("a", "b"), embed_dim=3).eval()
    x = {"a": torch.randn(5, 3), "b": torch.randn(5, 3)}
    present = torch.tensor([[True, False], [True, True], [False, True], [True, True], [False, False]])
    with torch.no_grad():
        out = torch.compile(fusion, fullgraph=True)(x, present)
        torch.testing.assert_close(out.fused, fusion(x, present).fused)
