"""Compile, export, ONNX, checkpointing, data parallel and host synchronisation of the AECF layers."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polyfuse.layers import CurriculumMasking, EntropyGate, FusionPool, MultimodalAttentionPool

B, M, D, H = 7, 3, 20, 5
POLICIES = ("inverse_entropy", "entropy", "uniform", "dominance")

# PyTorch's own compiler and exporter warn about their internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def masking(policy: str = "inverse_entropy") -> CurriculumMasking:
    return CurriculumMasking(policy=policy, target_rate=0.5)


def fusion_pool(policy: str = "inverse_entropy", **kwargs: Any) -> FusionPool:
    torch.manual_seed(0)
    return FusionPool(D, M, H, curriculum_masking=masking(policy), **kwargs)


def gate(policy: str = "inverse_entropy") -> EntropyGate:
    torch.manual_seed(0)
    return EntropyGate(D, M, curriculum_masking=masking(policy))


class PerRow(nn.Module):
    """Queries that differ by row, on the general path."""

    def __init__(self, policy: str = "inverse_entropy") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pool = MultimodalAttentionPool(D, H, curriculum_masking=masking(policy))

    def forward(self, x: Tensor, present: Tensor | None = None, *, drop: Any = None, return_info: bool = False) -> Any:
        return self.pool(x[:, :2], x, present=present, drop=drop, return_info=return_info)


MODELS = {"fusion_pool": fusion_pool, "gate": gate, "per_row": PerRow}


def batch(size: int = B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    present = torch.rand(size, M, generator=generator) < 0.6
    present[0] = False
    return torch.randn(size, M, D, generator=generator), present


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("training", "info"), [(True, True), (False, False)])
def test_compiles_to_one_dynamic_graph(name: str, training: bool, info: bool) -> None:
    model = MODELS[name]().train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (B, 11):
        x, present = batch(size)
        drop = present & (torch.rand(size, M, generator=torch.Generator().manual_seed(1)) < 0.5) if training else None
        results = []
        for run in (model, compiled):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            result = run(leaf, present, drop=drop, return_info=info)
            output = result[0] if info else result
            loss = output.square().sum() + (result[1]["entropy"].sum() if info else 0.0)
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([output, leaf.grad, *grads, *([] if not info else result[1].values())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["inverse_entropy", "uniform"])
def test_sampling_compiles_and_follows_the_ramp_without_a_new_graph(policy: str) -> None:
    model = fusion_pool(policy).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    x, present = batch(101)
    with torch._dynamo.config.patch(error_on_recompile=True):
        _, info = compiled(x, present, return_info=True)
        assert info["drop"].any()
        assert not (info["drop"] & ~present).any()
        assert ((present & ~info["drop"]).any(-1) == present.any(-1)).all()
        masking_of = model.pool.curriculum_masking
        assert masking_of is not None
        masking_of.set_progress(0.0)
        assert not compiled(x, present, return_info=True)[1]["drop"].any()


def test_standalone_masking_compiles() -> None:
    layer = masking("dominance").train()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 9):
        weights = torch.rand(size, 4, M).softmax(-1)
        masked, _info = compiled(weights)
        torch.testing.assert_close(masked.sum(-1), torch.ones(size, 4))
    loss = torch.compile(layer.entropy_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(loss(torch.rand(6)), layer.entropy_loss(torch.rand(6)), rtol=10, atol=10)


def test_an_expanded_query_takes_the_fast_path_in_a_compiled_graph() -> None:
    pool = MultimodalAttentionPool(D, H)
    query = nn.Parameter(torch.randn(1, 1, D))

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(x: Tensor) -> Any:
        return pool(query.expand(x.shape[0], -1, -1), x)

    for size in (B, 5):
        x, _ = batch(size)
        torch.testing.assert_close(run(x), pool(query, x))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("info", [False, True])
def test_exports_with_a_dynamic_batch(name: str, info: bool) -> None:
    model = MODELS[name]().eval()
    size = torch.export.Dim("batch", max=4096)  # PyTorch 2.6 wants an end
    shapes: Any = {"x": {0: size}, "present": {0: size}}
    if name != "per_row":
        shapes = {"features": {0: size}, "present": {0: size}}
    if info:
        shapes["return_info"] = None
    arguments = batch()
    program = torch.export.export(model, arguments, {"return_info": True} if info else {}, dynamic_shapes=shapes)
    for rows in (B, 2, 13):
        x, present = batch(rows)
        found, expected = (
            run(x, present, **({"return_info": True} if info else {})) for run in (program.module(), model)
        )
        torch.testing.assert_close(found, expected)


def test_an_exported_graph_does_not_trust_strides() -> None:
    """Exported with an expanded query, then fed queries that differ by row."""
    pool = MultimodalAttentionPool(D, H).eval()
    size = torch.export.Dim("batch", max=4096)  # PyTorch 2.6 wants an end
    x, _ = batch()
    shapes = {"query": {0: size}, "key": {0: size}}
    program = torch.export.export(pool, (torch.randn(1, 1, D).expand(B, -1, -1), x), dynamic_shapes=shapes)
    queries = torch.randn(5, 1, D)
    torch.testing.assert_close(program.module()(queries, batch(5)[0]), pool(queries, batch(5)[0]))


@pytest.mark.filterwarnings("ignore:# The axis name")  # both inputs share the batch axis
@pytest.mark.parametrize("name", sorted(MODELS))
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = MODELS[name]().eval()
    path = tmp_path / "pool.onnx"
    size = torch.export.Dim("batch", max=4096)  # PyTorch 2.6 wants an end
    torch.onnx.export(
        model,
        batch(),
        path,
        dynamo=True,
        dynamic_shapes=({0: size}, {0: size}),
        input_names=["x", "present"],
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (B, 13):
        x, present = batch(rows)
        (found,) = session.run(None, {"x": x.numpy(), "present": present.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x, present), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize("info", [False, True])
def test_checkpointing_gives_the_same_gradients_under_dropout_and_masking(queries: int | None, info: bool) -> None:
    torch.manual_seed(0)
    pool = MultimodalAttentionPool(D, H, dropout=0.4, curriculum_masking=masking())
    x, present = batch()
    query = torch.randn(1 if queries is None else B, queries or 1, D)
    results = []
    for use_checkpoint in (False, True):
        torch.manual_seed(5)
        leaves = [x.clone().requires_grad_(), query.clone().requires_grad_()]
        pool.zero_grad()
        result = pool(leaves[1], leaves[0], present=present, return_info=info, use_checkpoint=use_checkpoint)
        output = result[0] if info else result
        (output.square().sum() + (result[1]["entropy"].sum() if info else 0)).backward()
        results.append([output, *(leaf.grad for leaf in leaves), *(p.grad.clone() for p in pool.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


class NoSync(TorchDispatchMode):
    """Refuses every operation whose result the host must wait for."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        assert name not in self.REFUSED, f"{name} makes the host wait"
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a bool index makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("training", [False, True])
def test_forward_never_waits_for_the_device(name: str, policy: str, training: bool) -> None:
    model = MODELS[name](policy).train(training)
    layer = masking(policy).train(training)
    x, present = batch()
    with NoSync():
        for info in (False, True):
            model(x, present, return_info=info)
            model(x, return_info=info)
        weights, told = layer(x.softmax(1).mean(-1))
        layer.entropy_loss(told["entropy"], told["target_entropy"])
    with pytest.raises(AssertionError, match="makes the host wait"), NoSync():
        bool(weights.sum() > 0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_runs_on_meta_tensors(name: str) -> None:
    """Nothing in a forward pass depends on a value."""
    model = MODELS[name]().train().to("meta")
    x, present = (t.to("meta") for t in batch())
    output, info = model(x, present, return_info=True)
    assert output.device.type == "meta"
    assert info["drop"].shape == (B, M)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ddp_worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    x, present = batch(8)
    present[:] = True  # so that the null token and every absent branch stay unused by content
    drop = torch.rand(8, M, generator=torch.Generator().manual_seed(1)) < 0.5
    rows = slice(4 * rank, 4 * rank + 4)
    gradients = {}
    for name, build in MODELS.items():
        model = nn.parallel.DistributedDataParallel(build())
        for step in range(3):  # a parameter that is unused makes the second step fail
            model.zero_grad()
            output, info = model(x[rows], present[rows] if step else None, drop=drop[rows], return_info=True)
            (output.square().mean() - info["entropy"].mean()).backward()
        gradients[name] = {key: p.grad.clone() for key, p in model.module.named_parameters()}
    torch.save(gradients, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_batch(tmp_path: Path) -> None:
    mp.spawn(ddp_worker, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    x, _ = batch(8)
    drop = torch.rand(8, M, generator=torch.Generator().manual_seed(1)) < 0.5
    for name, build in MODELS.items():
        model = build()
        output, info = model(x, drop=drop, return_info=True)
        (output.square().mean() - info["entropy"].mean()).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(first[name][key], second[name][key])
            torch.testing.assert_close(first[name][key], parameter.grad)
