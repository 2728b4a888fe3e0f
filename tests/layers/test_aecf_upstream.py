"""What the last public test suite of aecf asserted, tightened where it could not fail (numbers: its order)."""

import math

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import CurriculumMasking, MultimodalAttentionPool, create_fusion_pool, multimodal_attention_pool

Tensors = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def masking() -> CurriculumMasking:
    return CurriculumMasking(base_mask_prob=0.15, entropy_target=0.7, min_active=1)


@pytest.fixture
def weights() -> Tensor:
    return torch.rand(5, 7, generator=torch.Generator().manual_seed(42)).softmax(-1)


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(42)
    return tuple(torch.randn(2, n, 64, generator=generator) for n in (1, 7, 7))  # type: ignore[return-value]


def test_01_arguments_are_stored() -> None:
    masking = CurriculumMasking(base_mask_prob=0.2, entropy_target=0.8, min_active=2)
    assert (masking.base_mask_prob, masking.entropy_target, masking.min_active) == (0.2, 0.8, 2)
    assert isinstance(masking._eps, Tensor)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"base_mask_prob": 0.0}, r"base_mask_prob must be in \(0, 1\], got 0.0"),
        ({"base_mask_prob": 1.5}, r"base_mask_prob must be in \(0, 1\], got 1.5"),
        ({"base_mask_prob": math.nan}, r"base_mask_prob must be in \(0, 1\], got nan"),
        ({"entropy_target": 0.0}, r"entropy_target must be in \(0, 1\], got 0.0"),
        ({"entropy_target": 1.5}, r"entropy_target must be in \(0, 1\], got 1.5"),
        ({"min_active": 0}, "min_active must be >= 1, got 0"),
    ],
)
def test_02_bad_arguments_are_refused(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CurriculumMasking(**arguments)  # type: ignore[arg-type]


def test_03_entropy_of_uniform_and_one_hot(masking: CurriculumMasking) -> None:
    uniform, one_hot = torch.full((2, 4), 0.25), torch.eye(4)[:2]
    torch.testing.assert_close(masking.compute_entropy(uniform), torch.full((2,), math.log(4)), rtol=1e-6, atol=1e-6)
    assert (masking.compute_entropy(one_hot) < 1e-6).all()
    torch.testing.assert_close(masking.compute_entropy_fused(uniform), masking.compute_entropy(uniform))


@pytest.mark.parametrize("shape", [(10,), (5, 10), (3, 5, 10), (2, 3, 5, 10)])
def test_04_entropy_loses_the_last_axis(masking: CurriculumMasking, shape: tuple[int, ...]) -> None:
    weights = torch.rand(shape).softmax(-1)
    assert masking.compute_entropy(weights).shape == shape[:-1]
    assert masking(weights)[1]["entropy"].shape == shape[:-1]


def test_05_training(masking: CurriculumMasking, weights: Tensor) -> None:
    masked, info = masking(weights)
    assert masked.shape == weights.shape
    assert {"entropy", "mask_rate", "target_entropy"} <= set(info)
    torch.testing.assert_close(masked.sum(-1), torch.ones(5), rtol=1e-5, atol=1e-5)
    assert (info["entropy"] >= 0).all()
    assert ((info["mask_rate"] >= 0) & (info["mask_rate"] <= 1)).all()


def test_06_evaluation_is_the_identity(masking: CurriculumMasking, weights: Tensor) -> None:
    masked, info = masking.eval()(weights)
    assert torch.equal(masked, weights)
    assert not info["mask_rate"].any()
    assert info["entropy"].shape == (5,)


def test_08_a_single_element_is_left_alone(masking: CurriculumMasking) -> None:
    masked, info = masking(torch.ones(3, 1))
    assert torch.equal(masked, torch.ones(3, 1))
    assert not info["entropy"].any()
    assert not info["mask_rate"].any()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_09_non_finite_weights_count_as_zero_and_are_marked(
    masking: CurriculumMasking, broken: float, training: bool
) -> None:
    weights = torch.tensor([[0.5, broken, 0.5], [1.0, 0.0, 0.0]], requires_grad=True)
    masked, info = masking.train(training)(weights)
    assert masked.isfinite().all()
    assert info["entropy"].isfinite().all()
    assert info["nonfinite"].tolist() == [True, False]
    (gradient,) = torch.autograd.grad(masked.square().sum() + info["entropy"].sum(), weights)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0])
def test_09_tiny_weights(masking: CurriculumMasking, scale: float) -> None:
    masked, info = masking(torch.full((2, 5), scale))
    torch.testing.assert_close(masked.sum(-1), torch.ones(2))
    torch.testing.assert_close(info["entropy"], torch.full((2,), math.log(5)))


def test_10_entropy_loss_is_a_finite_scalar(masking: CurriculumMasking) -> None:
    loss = masking.entropy_loss(torch.tensor([0.5, 0.1, 0.2]))
    assert loss.shape == ()
    assert loss > 0
    broken = torch.tensor([math.nan, math.inf, -math.inf], requires_grad=True)
    loss = masking.entropy_loss(broken)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, broken)[0].isfinite().all()
    assert masking.entropy_loss(torch.zeros(0)) == 0.0


def test_11_the_seed_decides(weights: Tensor) -> None:
    masking = CurriculumMasking(0.5, policy="uniform")
    first, _ = masking(weights, generator=torch.Generator().manual_seed(123))
    again, _ = masking(weights, generator=torch.Generator().manual_seed(123))
    other, _ = masking(weights, generator=torch.Generator().manual_seed(124))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    first, _ = masking(weights)
    torch.manual_seed(5)
    assert torch.equal(first, masking(weights)[0])


def test_12_gradients_flow_through_mask_and_entropy() -> None:
    weights = torch.tensor([[0.6, 0.3, 0.1, 0.0]], requires_grad=True)
    drop = torch.tensor([[True, False, False, False]])
    masked, info = CurriculumMasking()(weights, drop=drop)
    (gradient,) = torch.autograd.grad(masked[0, 1], weights, retain_graph=True)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.1 / 0.16, -0.3 / 0.16, -0.3 / 0.16]]))
    (gradient,) = torch.autograd.grad(info["entropy"].sum(), weights)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_15_repr(masking: CurriculumMasking) -> None:
    text = repr(masking)
    for part in ("CurriculumMasking", "base_mask_prob=0.15", "entropy_target=0.7", "min_active=1"):
        assert part in text
    assert "inverse_entropy hardly drops anything while attention is near uniform" in text
    assert "hardly" not in repr(CurriculumMasking(policy="uniform"))


def test_16_pool_arguments_are_stored() -> None:
    pool = MultimodalAttentionPool(embed_dim=128, num_heads=8, dropout=0.1, bias=False, batch_first=False)
    assert (pool.embed_dim, pool.num_heads, pool.batch_first) == (128, 8, False)
    assert isinstance(pool.attention, nn.MultiheadAttention)
    assert pool.attention.in_proj_bias is None
    assert pool.attention.dropout == 0.1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"embed_dim": 0}, "embed_dim must be positive, got 0"),
        ({"embed_dim": 64, "num_heads": 0}, "num_heads must be positive, got 0"),
        ({"embed_dim": 64, "num_heads": 5}, r"embed_dim \(64\) must be divisible by num_heads \(5\)"),
        ({"embed_dim": 64, "dropout": 1.5}, r"dropout must be in \[0, 1\], got 1.5"),
        ({"embed_dim": 64, "on_empty": "learned"}, r"'learned' is FusionPool's\), got 'learned'"),
    ],
)
def test_17_bad_pool_arguments_are_refused(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MultimodalAttentionPool(**arguments)  # type: ignore[arg-type]


def test_18_19_forward_and_info(tensors: Tensors) -> None:
    pool = MultimodalAttentionPool(embed_dim=64, num_heads=4)
    output, info = pool(*tensors, return_info=True)
    assert output.shape == tensors[0].shape
    assert output.isfinite().all()
    assert info["attention_weights"].shape == (2, 1, 7)
    torch.testing.assert_close(info["attention_weights"].sum(-1), torch.ones(2, 1))
    assert "entropy" not in info


def test_20_value_defaults_to_key(tensors: Tensors) -> None:
    query, key, _ = tensors
    pool = MultimodalAttentionPool(embed_dim=64, num_heads=4)
    torch.testing.assert_close(pool(query, key), pool(query, key, key.clone()))


def test_21_masking_shows_in_info_and_in_the_output(tensors: Tensors) -> None:
    query, key, _ = tensors
    pool = MultimodalAttentionPool(64, curriculum_masking=CurriculumMasking(0.9, policy="uniform"))
    torch.manual_seed(0)
    output, info = pool(query, key, return_info=True)
    keys = {"attention_weights", "entropy", "mask_rate", "masked_attention_weights", "target_entropy"}
    assert keys <= set(info)
    assert all(info[name].shape == (2, 1) for name in ("entropy", "mask_rate", "target_entropy"))
    assert (info["mask_rate"] > 0).all()
    assert not torch.allclose(output, pool.eval()(query, key))


def test_22_masked_keys_have_no_influence(tensors: Tensors) -> None:
    query, key, value = tensors
    pool = MultimodalAttentionPool(64, 4)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[:, -2:] = True
    for masks in ({"key_padding_mask": padding}, {"attn_mask": padding[:1]}):
        output = pool(query, key, value, **masks)
        changed = [torch.cat([x[:, :-2], x[:, -2:] + 5], 1) for x in (key, value)]
        torch.testing.assert_close(pool(query, *changed, **masks), output)
        torch.testing.assert_close(pool(query, key[:, :-2], value[:, :-2]), output)


def test_23_sequence_first_equals_batch_first(tensors: Tensors) -> None:
    first = MultimodalAttentionPool(64, 4)
    second = MultimodalAttentionPool(64, 4, batch_first=False)
    second.load_state_dict(first.state_dict())
    turned = [x.transpose(0, 1) for x in tensors]
    torch.testing.assert_close(second(*turned), first(*tensors).transpose(0, 1))
    torch.testing.assert_close(second(*turned[:2]), first(*tensors[:2]).transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_24_shapes_are_checked(batch_first: bool) -> None:
    pool = MultimodalAttentionPool(64, batch_first=batch_first)

    def make(batch: int, length: int, width: int = 64) -> Tensor:
        return torch.zeros((batch, length, width) if batch_first else (length, batch, width))

    with pytest.raises(RuntimeError, match=r"Value shape .* incompatible with key shape"):
        pool(make(2, 1), make(2, 8), make(2, 8, 32))
    key_error = "Key shape .*2, 8, 64.* incompatible with query shape .*4, 1, 64" if batch_first else "Shape mismatch"
    with pytest.raises(RuntimeError, match=key_error):
        pool(make(4, 1), make(2, 8))
    with pytest.raises(ValueError, match=f"Expected 3D query tensor with batch_first={batch_first}, got 1D"):
        pool(torch.zeros(64), make(2, 8))
    with pytest.raises(ValueError, match="width embed_dim = 64, got 32"):
        pool(make(2, 1, 32), make(2, 8, 32))
    with pytest.raises(ValueError, match="Key sequence length cannot be zero"):
        pool(make(2, 1), make(2, 0))
    for position, name in enumerate(("query", "key", "value")):
        arguments: list[object] = [make(2, 1), make(2, 8), make(2, 8)]
        arguments[position] = [1.0]
        with pytest.raises(TypeError, match=f"Expected {name} to be torch.Tensor"):
            pool(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_27_types_are_kept_with_masking(tensors: Tensors, dtype: torch.dtype, training: bool) -> None:
    masking = CurriculumMasking(0.5, policy="dominance")
    pool = MultimodalAttentionPool(64, 4, curriculum_masking=masking, dtype=dtype).train(training)
    query, key, _ = (x.to(dtype) for x in tensors)
    output, info = pool(query, key, return_info=True)
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert info["entropy"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_28_equals_multihead_attention(tensors: Tensors) -> None:
    pool = MultimodalAttentionPool(64, 4)
    reference = nn.MultiheadAttention(64, 4, batch_first=True)
    reference.load_state_dict(pool.attention.state_dict())
    torch.testing.assert_close(pool(*tensors), reference(*tensors)[0], rtol=1e-5, atol=1e-5)


def test_30_function_is_deterministic() -> None:
    query, key = torch.randn(2, 1, 32), torch.randn(2, 5, 32)
    output = multimodal_attention_pool(query, key, embed_dim=32, training=True)
    assert output.shape == query.shape
    assert torch.equal(output, multimodal_attention_pool(query, key, embed_dim=32))
    expected = ((query @ key.transpose(1, 2)) / math.sqrt(32)).softmax(-1) @ key
    torch.testing.assert_close(output, expected)


def test_31_factory() -> None:
    query, pool = create_fusion_pool(embed_dim=128, num_modalities=3, mask_prob=0.2)
    assert isinstance(query, nn.Parameter)
    assert query.shape == (1, 1, 128)
    assert isinstance(pool, MultimodalAttentionPool)
    assert pool.curriculum_masking is not None
    assert pool.curriculum_masking.base_mask_prob == 0.2
    assert query.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.2)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_33_extreme_inputs(scale: float) -> None:
    pool = MultimodalAttentionPool(64)
    query, key = scale * torch.randn(2, 1, 64), (scale * torch.randn(2, 8, 64)).requires_grad_()
    output, info = pool(query, key, return_info=True)
    assert output.isfinite().all()
    assert info["attention_weights"].isfinite().all()
    assert torch.autograd.grad(output.sum(), key)[0].isfinite().all()


def test_34_converges_with_the_entropy_term() -> None:
    """aecf 0.1.0 fails this: its entropy term has no gradient and grows."""
    torch.manual_seed(42)
    masking = CurriculumMasking(base_mask_prob=0.1)
    pool = MultimodalAttentionPool(32, curriculum_masking=masking)
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.01)
    losses = []
    for _ in range(50):
        query, key = torch.randn(16, 1, 32), torch.randn(16, 8, 32)
        key[:, -1] += 2.0
        _, info = pool(query, key, return_info=True)
        target = torch.eye(8)[-1].expand(16, 8)
        loss = nn.functional.mse_loss(info["attention_weights"].squeeze(1), target)
        loss = loss + 0.1 * masking.entropy_loss(info["entropy"], info["target_entropy"], mode="mse")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_37_very_long_sequences() -> None:
    pool = MultimodalAttentionPool(32, 2, curriculum_masking=CurriculumMasking(policy="dominance", target_rate=0.5))
    output, info = pool(torch.randn(1, 1, 32), torch.randn(1, 10_000, 32), return_info=True)
    assert output.shape == (1, 1, 32)
    assert info["mask_rate"].item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("weights", [torch.eye(10)[:2], torch.full((2, 10), 0.1)])
def test_38_pathological_weights(weights: Tensor) -> None:
    masking = CurriculumMasking(base_mask_prob=0.9)
    weights = weights.clone().requires_grad_()
    for seed in range(20):
        masked, info = masking(weights, generator=torch.Generator().manual_seed(seed))
        assert (masked.sum(-1) - 1).abs().max() < 1e-5
        (gradient,) = torch.autograd.grad(masked.square().sum() + info["entropy"].sum(), weights)
        assert gradient.isfinite().all()


@pytest.mark.gpu
def test_39_on_an_accelerator() -> None:
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    device = torch.accelerator.current_accelerator()
    assert device is not None
    pool = MultimodalAttentionPool(32, curriculum_masking=CurriculumMasking(), device=device)
    assert pool(torch.randn(2, 1, 32, device=device), torch.randn(2, 8, 32, device=device)).device.type == device.type
