"""What every encoder of the registry keeps: shapes, absent rows, rows apart, precision, compile, export."""

import math
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.data.batch import map_tensors
from polyfuse.data.spec import ModalitySpec
from polyfuse.encoders import DEFAULTS, ENCODERS, build_encoder

B, D = 5, 7
SPECS = {
    "image": ModalitySpec("picture", "image", {"size": 16}),
    "text": ModalitySpec("words", "text", {"vocab_size": 31, "max_length": 11}),
    "audio": ModalitySpec("sound", "audio", {"rate": 4000, "samples": 1301}),
    "tabular": ModalitySpec("cells", "tabular", {"numeric": 3, "cardinalities": [4, 3]}),
    "series": ModalitySpec("sensor", "series", {"channels": 3, "length": 23}),
    "vector": ModalitySpec("features", "vector", {"width": 13}),
    "video": ModalitySpec("clip", "video", {"frames": 5, "size": 16}),
    "points": ModalitySpec("lidar", "points", {"count": 17, "channels": 4}),
}
NAMES = sorted(ENCODERS)


def inputs_of(kind: str, rows: int = B, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (rows,), generator=g)
    if kind == "image":
        return torch.randint(0, 256, (rows, 3, 16, 16), generator=g).to(torch.uint8)
    if kind == "text":
        mask = torch.arange(11) < lengths[:, None]
        return {"ids": (torch.randint(1, 31, (rows, 11), generator=g) * mask).int(), "mask": mask}
    if kind == "audio":
        wave = (torch.randn(rows, 1301, generator=g) * 3000).to(torch.int16)
        return {"wave": wave * (torch.arange(1301) < (lengths * 110)[:, None]), "length": lengths * 110}
    if kind == "tabular":
        mask = torch.rand(rows, 3, generator=g) < 0.7
        numeric = torch.randn(rows, 3, generator=g) * mask
        ids = torch.stack([torch.randint(0, c, (rows,), generator=g) for c in (4, 3)], dim=1)
        return {"numeric": numeric, "numeric_mask": mask, "categorical": ids}
    if kind == "series":
        mask = torch.arange(23) < (2 * lengths)[:, None]
        return {"values": torch.randn(rows, 23, 3, generator=g) * mask[..., None], "mask": mask}
    if kind == "video":
        mask = torch.arange(5) < (lengths % 5 + 1)[:, None]
        frames = torch.randint(0, 256, (rows, 5, 3, 16, 16), generator=g).to(torch.uint8)
        times = torch.rand(rows, 5, generator=g).sort(dim=1)[0] * mask
        return {"frames": frames * mask[..., None, None, None], "times": times, "mask": mask}
    if kind == "points":
        mask = torch.arange(17) < (lengths + 2)[:, None]
        return {"points": torch.randn(rows, 17, 4, generator=g) * mask[..., None], "mask": mask}
    return torch.randn(rows, 13, generator=g)


def on(value: Any, function: Any) -> Any:
    return map_tensors({"": value}, function)[""]


def make(name: str, **kwargs: Any) -> tuple[nn.Module, Any]:
    """A narrow one: what is tested does not depend on the width, how long it takes does."""
    torch.manual_seed(0)
    kind = ENCODERS[name].modality_type
    narrow = {"hidden_dim": 16} if "hidden_dim" in signature(ENCODERS[name]).parameters else {}
    return build_encoder(SPECS[kind], D, name, **(narrow | kwargs)), inputs_of(kind)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_mix(name: str) -> None:
    encoder, x = make(name)
    encoder.eval()
    whole = encoder(x)
    assert whole.shape == (B, D)
    for i in range(B):
        torch.testing.assert_close(encoder(on(x, lambda t, i=i: t[i : i + 1])), whole[i : i + 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_absent_rows_are_finite_forward_and_backward(name: str) -> None:
    encoder, x = make(name)
    x = on(x, lambda t: torch.cat([torch.zeros_like(t[:2]), t[2:]]))
    out = encoder(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    only_absent = encoder(on(x, torch.zeros_like))
    only_absent.square().sum().backward()
    assert only_absent.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_trains(name: str) -> None:
    encoder, x = make(name, dropout=0.0)
    encoder(x).square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_no_batch_norm_and_no_buffer(name: str) -> None:
    encoder, _ = make(name)
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not dict(encoder.named_buffers())


@pytest.mark.parametrize("name", NAMES)
def test_eval_is_deterministic_and_dropout_is_real(name: str) -> None:
    encoder, x = make(name, dropout=0.5)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_precision(name: str, dtype: torch.dtype) -> None:
    encoder, x = make(name)
    expected = encoder.eval()(x)
    encoder.to(dtype)
    out = encoder(x)
    assert out.dtype == dtype
    loose = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-4}[dtype]
    torch.testing.assert_close(out.float(), expected, atol=loose, rtol=loose)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    encoder, x = make(name)
    x = on(x, lambda t: torch.cat([torch.zeros_like(t[:1]), t[1:]]))
    expected = encoder.eval()(x)
    with torch.autocast("cpu", dtype=dtype):
        out = encoder(x)
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    encoder, x = make(name, dropout=0.0)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), encoder(x), atol=1e-5, rtol=1e-5)
    compiled(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    encoder, x = make(name)
    encoder.eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = on(x, lambda t: {0: batch})
    program = torch.export.export(encoder, (x,), dynamic_shapes=(shapes,))
    for rows in (1, 11):
        other = inputs_of(encoder.modality_type, rows=rows, seed=rows)
        torch.testing.assert_close(program.module()(other), encoder(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_factory_arguments(name: str) -> None:
    encoder, _ = make(name, device="meta", dtype=torch.bfloat16)
    for parameter in encoder.parameters():
        assert parameter.device.type == "meta"
        assert parameter.dtype == torch.bfloat16


def test_every_type_has_an_encoder_and_wrong_ones_are_refused() -> None:
    for kind, spec in SPECS.items():
        assert build_encoder(spec, D).modality_type == kind
        assert build_encoder(spec, D, DEFAULTS[kind], hidden_dim=64).modality_type == kind
    with pytest.raises(ValueError, match="'image_cnn' takes image inputs, but modality 'words' is text"):
        build_encoder(SPECS["text"], D, "image_cnn")
    with pytest.raises(KeyError, match="did you mean 'image_cnn'"):
        build_encoder(SPECS["image"], D, "image_cmm")


def test_options_an_encoder_does_not_know_are_left_alone() -> None:
    spec = ModalitySpec("features", "vector", {"width": 13, "origin": "minilm"})
    assert build_encoder(spec, D)(torch.zeros(2, 13)).shape == (2, D)


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64, 96, 128])
def test_pictures_of_any_size(size: int) -> None:
    encoder = build_encoder(ModalitySpec("picture", "image", {"size": size}), D)
    picture = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    sides = []
    encoder.stages[-1].register_forward_hook(lambda module, args, out: sides.append(out.shape[2]))
    assert encoder(picture).shape == (2, D)
    assert sides[0] in (3, 4)
    assert encoder(picture[..., : size // 2, : size // 2]).shape == (2, D)


@pytest.mark.parametrize("kind", ["text", "series", "audio", "video", "points"])
def test_padding_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(SPECS[kind], D).eval()
    x = inputs_of(kind)
    expected = encoder(x)
    if kind == "text":
        cut = int(x["mask"].sum(1).max())
        padded = {key: t[:, :cut] for key, t in x.items()}
        noisy = {**x, "ids": x["ids"].masked_fill(~x["mask"], 9)}
    elif kind == "series":
        padded = {key: torch.cat([t, torch.zeros_like(t[:, :10])], dim=1) for key, t in x.items()}
        noisy = {**x, "values": x["values"].masked_fill(~x["mask"][..., None], math.nan)}
    elif kind in ("video", "points"):
        padded = {key: torch.cat([t, torch.zeros_like(t[:, :3])], dim=1) for key, t in x.items()}
        holes = {"video": {"times": math.nan, "frames": 77}, "points": {"points": math.nan}}[kind]
        noisy = dict(x)
        for key, hole in holes.items():
            noisy[key] = x[key].masked_fill(~x["mask"].view(B, -1, *[1] * (x[key].ndim - 2)), hole)
    else:
        padded = {**x, "wave": torch.cat([x["wave"], torch.zeros(B, 700, dtype=torch.int16)], dim=1)}
        noisy = x
    torch.testing.assert_close(encoder(padded), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(noisy), expected, atol=1e-5, rtol=1e-5)


def test_missing_cells_are_told_from_the_mean() -> None:
    encoder, x = make("tabular_mlp")
    encoder.eval()
    x = {**x, "numeric": torch.zeros(B, 3), "numeric_mask": torch.zeros(B, 3, dtype=torch.bool)}
    there = {**x, "numeric_mask": torch.ones(B, 3, dtype=torch.bool)}
    assert not torch.allclose(encoder(x), encoder(there), atol=1e-3)
    broken = {**x, "numeric": torch.full((B, 3), math.nan)}
    torch.testing.assert_close(encoder(broken), encoder(x))


def test_unseen_categories_are_unknown() -> None:
    encoder, x = make("tabular_mlp")
    encoder.eval()
    unseen = {**x, "categorical": torch.tensor([[99, -3]] * B)}
    unknown = {**x, "categorical": torch.zeros(B, 2, dtype=torch.int64)}
    torch.testing.assert_close(encoder(unseen), encoder(unknown))


@pytest.mark.parametrize("options", [{"numeric": 3, "cardinalities": []}, {"numeric": 0, "cardinalities": [4, 3]}])
def test_tables_of_one_kind_of_column(options: dict[str, Any]) -> None:
    encoder = build_encoder(ModalitySpec("cells", "tabular", options), D)
    x: dict[str, Tensor] = inputs_of("tabular")
    if options["numeric"]:
        x["categorical"] = torch.zeros(B, 0, dtype=torch.int64)
    else:
        x["numeric"], x["numeric_mask"] = torch.zeros(B, 0), torch.zeros(B, 0, dtype=torch.bool)
    assert encoder(x).isfinite().all()


def test_user_mistakes() -> None:
    with pytest.raises(ValueError, match="got none of either"):
        build_encoder(ModalitySpec("cells", "tabular", {"numeric": 0, "cardinalities": []}), D)
    with pytest.raises(ValueError, match="num_heads = 4, got 30"):
        build_encoder(SPECS["text"], D, hidden_dim=30)
    ids = torch.ones(2, 12, dtype=torch.int32)
    with pytest.raises(ValueError, match="max_length = 11 tokens, got 12"):
        build_encoder(SPECS["text"], D)({"ids": ids, "mask": ids > 0})
