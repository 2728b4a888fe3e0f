import math

import pytest
import torch
from torch import Tensor

from polyfuse.layers import CurriculumMasking, EntropyGate, FusionPool, create_fusion_pool

B, M, D, H = 7, 3, 20, 5


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    present = torch.rand(B, M, generator=generator) < 0.6
    present[torch.arange(B), torch.arange(B) % M] = True
    present[3] = False
    return torch.randn(B, M, D, generator=generator, dtype=torch.float64).to(dtype), present


def pool(**kwargs: object) -> FusionPool:
    torch.manual_seed(0)
    return FusionPool(D, M, H, **kwargs)  # type: ignore[arg-type]


def gate(**kwargs: object) -> EntropyGate:
    torch.manual_seed(0)
    return EntropyGate(D, M, hidden_dim=11, **kwargs)  # type: ignore[arg-type]


BUILDERS = {"pool": pool, "gate": gate}
both = pytest.mark.parametrize("name", sorted(BUILDERS))


@both
def test_empty_rows_give_the_null_token_and_train_it(name: str) -> None:
    model = BUILDERS[name]()
    assert model.null is not None
    torch.nn.init.normal_(model.null)
    x, present = batch()
    fused = model(x, present)
    assert torch.equal(fused[3], model.null)
    assert not torch.equal(fused[0], model.null)
    (fused * torch.randn_like(fused)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), key


@both
@pytest.mark.parametrize("given", [False, True])
def test_the_null_token_has_a_gradient_without_empty_rows(name: str, given: bool) -> None:
    """None would stop a data-parallel run."""
    model = BUILDERS[name]()
    x, present = batch()
    model(x, torch.ones_like(present) if given else None).sum().backward()
    assert model.null is not None
    assert model.null.grad is not None
    assert not model.null.grad.any()


@both
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("filling", [1e3, math.nan, math.inf])
def test_absent_content_has_no_influence(name: str, training: bool, filling: float) -> None:
    model = BUILDERS[name]().train(training)
    x, present = batch()
    results = []
    for fill in (0.0, filling):
        leaf = x.masked_fill(~present[..., None], fill).requires_grad_()
        model.zero_grad()
        fused, info = model(leaf, present, return_info=True)
        fused.square().sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad[~present].any()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([fused, info["attention_weights"], leaf.grad, *grads])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(model(x), model(x, present))


@both
def test_dropping_equals_absence(name: str) -> None:
    model = BUILDERS[name](curriculum_masking=CurriculumMasking())
    x, present = batch()
    drop = torch.zeros_like(present)
    drop[:, 0] = True
    x = x.requires_grad_()
    fused, info = model(x, present, drop=drop, return_info=True)
    kept = present & ~drop
    kept |= present & ~kept.any(-1, keepdim=True)  # a row that would lose everything loses nothing
    torch.testing.assert_close(fused, model(x, kept, drop=torch.zeros_like(drop)))
    assert torch.equal(info["drop"], present & ~kept)
    assert not info["masked_attention_weights"][~kept].any()
    (gradient,) = torch.autograd.grad(fused.sum(), x)
    assert not gradient[~kept].any()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(name: str, dtype: torch.dtype) -> None:
    masking = CurriculumMasking(policy="dominance", target_rate=0.5)
    model = BUILDERS[name](curriculum_masking=masking, dtype=dtype).train()
    x, present = batch(dtype)
    fused, info = model(x, present, return_info=True)
    assert fused.dtype == dtype
    assert info["entropy"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (fused.float().square().sum() + info["entropy"].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@both
def test_autocast(name: str) -> None:
    model = BUILDERS[name]()
    x, present = batch()
    with torch.autocast("cpu", torch.bfloat16):
        fused, info = model(x, present, return_info=True)
    assert fused.dtype == torch.bfloat16
    assert info["attention_weights"].dtype == torch.float32
    fused.float().sum().backward()


@both
def test_info_has_one_row_per_sample(name: str) -> None:
    model = BUILDERS[name](curriculum_masking=CurriculumMasking(policy="uniform", target_rate=0.5)).train()
    x, present = batch()
    fused, info = model(x, present, return_info=True)
    for key in ("attention_weights", "masked_attention_weights", "drop"):
        assert info[key].shape == (B, M)
    for key in ("entropy", "target_entropy", "mask_rate", "empty"):
        assert info[key].shape == (B,)
    assert info["empty"].tolist() == [row == 3 for row in range(B)]
    ones = (~info["empty"]).float()
    for key in ("attention_weights", "masked_attention_weights"):
        torch.testing.assert_close(info[key].sum(-1), ones)
    assert info["entropy"].requires_grad
    assert fused.shape == (B, D)


@both
def test_evaluation_is_deterministic_and_samples_nothing(name: str) -> None:
    model = BUILDERS[name](curriculum_masking=CurriculumMasking(policy="uniform", target_rate=0.9)).eval()
    x, present = batch()
    state = torch.get_rng_state()
    assert torch.equal(model(x, present), model(x, present))
    assert torch.equal(state, torch.get_rng_state())
    generator = torch.Generator().manual_seed(0)
    model.train()
    assert not torch.equal(model(x, generator=generator), model(x, generator=generator))
    assert torch.equal(state, torch.get_rng_state())


def test_pool_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="on_empty must be 'learned', 'zero' or 'raise', got 'mean'"):
        FusionPool(D, M, on_empty="mean")
    with pytest.raises(ValueError, match="num_modalities must be a positive integer, got 0"):
        FusionPool(D, 0)
    x, present = batch()
    with pytest.raises(ValueError, match=r"\(B, M, D\) with M = 3, got \(7, 2, 20\)"):
        pool()(x[:, :2])
    with pytest.raises(ValueError, match=r"got none in rows \[3\]"):
        pool(on_empty="raise")(x, present)
    assert pool(on_empty="zero").null is None
    model = pool(on_empty="zero")
    torch.testing.assert_close(model(x, present)[3], model.pool.attention.out_proj.bias)


def test_fusion_pool_draws_what_its_sampler_draws() -> None:
    model = pool(curriculum_masking=CurriculumMasking(policy="entropy", target_rate=0.5)).train()
    x, present = batch()
    sampled = model.sample_drop(x, present, torch.Generator().manual_seed(3))
    _, info = model(x, present, generator=torch.Generator().manual_seed(3), return_info=True)
    assert sampled.any()
    assert torch.equal(sampled, info["drop"])


def test_state_holds_query_null_and_attention() -> None:
    model = pool(curriculum_masking=CurriculumMasking())
    names = {"query", "null"} | {f"pool.attention.{key}" for key in model.pool.attention.state_dict()}
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"embed_dim": 0}, "embed_dim must be positive, got 0"),
        ({"num_modalities": 0}, "num_modalities must be positive, got 0"),
        ({"hidden_dim": 0}, "hidden_dim must be positive, got 0"),
        ({"temperature": 0.1}, r"0 < min_temperature < temperature, got 0.1 and 0.1"),
        ({"on_empty": "raise"}, "on_empty must be 'learned' or 'zero', got 'raise'"),
    ],
)
def test_gate_arguments_are_checked(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EntropyGate(**{"embed_dim": D, "num_modalities": M} | arguments)  # type: ignore[arg-type]


def test_gate_inputs_are_checked() -> None:
    x, present = batch()
    with pytest.raises(ValueError, match=r"\(M, D\) = \(3, 20\), got \(7, 3, 5\)"):
        gate()(x[..., :5])
    with pytest.raises(ValueError, match=r"\(B, M\) = \(7, 3\), got torch.float32 \(7, 3\)"):
        gate()(x, present.float())
    with pytest.raises(ValueError, match=r"drop must have shape \(B, M\) = \(7, 3\), got \(7, 2\)"):
        gate()(x, present, drop=present[:, :2])


def test_gate_equals_the_formula() -> None:
    model = gate(temperature=2.0).double().eval()
    x, present = batch(torch.float64)
    fused, info = model(x, present, return_info=True)
    assert model.temperature.item() == pytest.approx(2.0)
    matrices = model.values.weight.reshape(D, M, D)
    for b in range(B):
        if b == 3:
            continue
        here = [m for m in range(M) if present[b, m]]
        flat = torch.cat([x[b, m] * present[b, m] for m in range(M)])
        logits = model.scores(torch.relu(model.hidden(flat)))[here] / 2.0
        p = logits.softmax(0)
        expected = sum(p[i] * (matrices[:, m] @ x[b, m]) for i, m in enumerate(here))
        torch.testing.assert_close(fused[b], expected)
        torch.testing.assert_close(info["attention_weights"][b, here], p)


def test_gate_temperature_stays_above_its_floor() -> None:
    model = gate(min_temperature=0.3)
    with torch.no_grad():
        model.raw_temperature.fill_(-100.0)
    assert model.temperature.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 3), "embed_dim must be a positive integer, got 0"),
        ((8.0, 3), "embed_dim must be a positive integer, got 8.0"),
        ((8, 0), "num_modalities must be a positive integer, got 0"),
        ((8, 3, 0.0), r"mask_prob must be in \(0, 1\], got 0.0"),
        ((8, 3, 1.5), r"mask_prob must be in \(0, 1\], got 1.5"),
        ((8, 3, "much"), r"mask_prob must be in \(0, 1\], got much"),
        ((8, 3, math.nan), r"mask_prob must be in \(0, 1\], got nan"),
    ],
)
def test_factory_checks_its_arguments(arguments: tuple[object, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        create_fusion_pool(*arguments)  # type: ignore[arg-type]
