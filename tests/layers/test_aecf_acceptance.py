"""The acceptance list of the AECF layer: what it must do, each as a property of outputs and gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import CurriculumMasking, FusionPool, MultimodalAttentionPool, multimodal_attention_pool

B, M, D, H = 7, 3, 20, 5
POLICIES = ("inverse_entropy", "entropy", "uniform", "dominance")


def data(dtype: torch.dtype = torch.float32, queries: int | None = None) -> tuple[Tensor, Tensor]:
    """A query (shared when ``queries`` is None) and features."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1 if queries is None else B, queries or 1, D, generator=generator, dtype=torch.float64)
    return query.to(dtype), torch.randn(B, M, D, generator=generator, dtype=torch.float64).to(dtype)


def pool_with(
    dtype: torch.dtype = torch.float32, masking: CurriculumMasking | None = None, **kwargs: object
) -> nn.Module:
    torch.manual_seed(2)
    pool = MultimodalAttentionPool(D, H, curriculum_masking=masking, dtype=dtype, **kwargs)  # type: ignore[arg-type]
    for bias in (pool.attention.in_proj_bias, pool.attention.out_proj.bias):
        nn.init.normal_(bias)  # PyTorch starts them at zero, which would hide a forgotten bias
    return pool


def some_present() -> Tensor:
    present = torch.rand(B, M, generator=torch.Generator().manual_seed(4)) < 0.5
    present[torch.arange(B), torch.arange(B) % M] = True
    present[2] = torch.tensor([True, False, False])
    return present


# --- masks act on the output ---------------------------------


@pytest.mark.parametrize("queries", [None, 1, 4])
@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_absent_modalities_have_exactly_no_influence(queries: int | None, info: bool, training: bool) -> None:
    pool = pool_with().train(training)
    query, features = data(queries=queries)
    present = some_present()
    results = []
    for filling in (0.0, 1e4, math.nan, math.inf):
        x = features.masked_fill(~present[..., None], filling).requires_grad_()
        pool.zero_grad()
        result = pool(query, x, present=present, return_info=info)
        output = result[0] if info else result
        output.square().sum().backward()
        assert not x.grad[~present].any()
        assert x.grad[present].any()
        results.append((output.detach(), pool.attention.in_proj_weight.grad.clone(), x.grad[present]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize("info", [False, True])
def test_dropped_modalities_have_exactly_no_influence(queries: int | None, info: bool) -> None:
    pool = pool_with(masking=CurriculumMasking())
    query, features = data(queries=queries)
    drop = torch.tensor([[True, False, False]]).expand(B, -1)
    features.requires_grad_()
    result = pool(query, features, drop=drop, return_info=info)
    output = result[0] if info else result
    (gradient,) = torch.autograd.grad(output.square().sum(), features)
    assert not gradient[:, 0].any()
    torch.testing.assert_close(output, pool(query, features, present=~drop, drop=torch.zeros_like(drop)))
    torch.testing.assert_close(output, pool.eval()(query, features[:, 1:]))


@pytest.mark.parametrize("queries", [None, 1, 4])
def test_report_only_equals_multihead_attention(queries: int | None) -> None:
    pool = pool_with(masking=CurriculumMasking(1.0, apply_mask=False)).train()
    query, features = data(queries=queries)
    state = torch.get_rng_state()
    output, info = pool(query, features, return_info=True)
    assert torch.equal(state, torch.get_rng_state())
    expected, weights = pool.attention(query.expand(B, -1, -1), features, features)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pool(query, features), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(info["attention_weights"], weights)
    assert not info["mask_rate"].any()
    assert (info["entropy"] > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mean_over_masks_differs_from_no_mask(policy: str) -> None:
    pool = pool_with(masking=CurriculumMasking(policy=policy, target_rate=0.5)).train()
    query, features = data()
    torch.manual_seed(0)
    mean = torch.stack([pool(query, features) for _ in range(200)]).mean(0)
    assert (mean - pool.eval()(query, features)).abs().max() > 0.1


def test_the_drop_in_info_made_the_output() -> None:
    pool = pool_with(masking=CurriculumMasking(policy="uniform", target_rate=0.6)).train()
    query, features = data()
    torch.manual_seed(0)
    output, info = pool(query, features, present=some_present(), return_info=True)
    assert info["drop"].any()
    assert not (info["drop"] & ~some_present()).any()
    torch.testing.assert_close(output, pool.eval()(query, features, present=some_present() & ~info["drop"]))
    assert not info["masked_attention_weights"].transpose(1, 2)[info["drop"] | ~some_present()].any()
    torch.testing.assert_close(info["masked_attention_weights"].sum(-1), torch.ones(B, 1))
    rate = info["drop"].sum(-1) / some_present().sum(-1)
    torch.testing.assert_close(info["mask_rate"], rate[:, None])


@pytest.mark.parametrize("info", [False, True])
def test_training_without_info_draws_the_same_masks(info: bool) -> None:
    """The statistics that steer the policy do not depend on who asks for them."""
    for policy in POLICIES:
        for queries in (None, 4):
            pool = pool_with(masking=CurriculumMasking(policy=policy, target_rate=0.5)).train()
            query, features = data(queries=queries)
            torch.manual_seed(3)
            one = pool(query, features, present=some_present())
            torch.manual_seed(3)
            two, told = pool(query, features, present=some_present(), return_info=True)
            torch.testing.assert_close(one, two)
            torch.manual_seed(3)
            assert torch.equal(pool.sample_drop(query, features, present=some_present()), told["drop"])


# --- entropy ---------------------------------


def test_the_entropy_loss_moves_parameters_until_the_target_is_met() -> None:
    masking = CurriculumMasking(entropy_target=0.9)
    pool = pool_with(masking=masking).train()
    query, features = data()
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        _, info = pool(query, 6 * features, return_info=True)
        loss = masking.entropy_loss(info["entropy"], info["target_entropy"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.01
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_entropy_gradient_is_finite_with_holes_and_one_hot_rows(scale: float) -> None:
    pool = pool_with(masking=CurriculumMasking()).train()
    query, features = data()
    _, info = pool(query, scale * features, present=some_present(), return_info=True)
    info["entropy"].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pool.parameters())
    assert scale > 1 or pool.attention.in_proj_weight.grad.any()


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_no_statistic(training: bool) -> None:
    query, features = data()
    masking = CurriculumMasking(policy="dominance", target_rate=0.4)
    pool = pool_with(masking=masking).train(training)
    drop = torch.tensor([[False, True, False]]).expand(B, -1) if training else None
    _, plain = pool(query, features, drop=drop, return_info=True)
    longer = torch.cat([features, torch.full((B, 4, D), math.nan)], 1)
    here = torch.tensor([True] * M + [False] * 4).expand(B, -1)
    drop = None if drop is None else torch.cat([drop, torch.ones(B, 4, dtype=torch.bool)], 1)
    _, padded = pool(query, longer, present=here, drop=drop, return_info=True)
    for name in ("entropy", "head_entropy", "target_entropy", "mask_rate", "empty"):
        torch.testing.assert_close(padded[name], plain[name])
    weights = plain["attention_weights"].squeeze(1)
    longer_weights = torch.cat([weights, torch.zeros(B, 4)], 1)
    torch.testing.assert_close(
        masking.drop_probability(longer_weights, here)[:, :M], masking.drop_probability(weights, here[:, :M])
    )


def test_entropy_loss_is_one_sided_and_the_square_on_request() -> None:
    masking = CurriculumMasking(entropy_target=0.5)
    entropy, target = torch.tensor([0.1, 0.9]), torch.tensor([0.4, 0.6])
    assert masking.entropy_loss(entropy, target).item() == pytest.approx(0.3**2 / 2)
    assert masking.entropy_loss(entropy, target, mode="mse").item() == pytest.approx(0.3**2)
    assert masking.entropy_loss(torch.zeros(3)).item() == pytest.approx((0.5 * math.log(2)) ** 2)
    with pytest.raises(ValueError, match="mode must be 'one_sided' or 'mse', got 'both'"):
        masking.entropy_loss(entropy, mode="both")


# --- rows with nothing ---------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize("training", [False, True])
def test_empty_rows_are_finite_and_neighbours_untouched(
    dtype: torch.dtype, queries: int | None, training: bool
) -> None:
    masking = CurriculumMasking(apply_mask=False)
    pool = pool_with(dtype, masking=masking).train(training)
    query, features = data(dtype, queries)
    present = some_present()
    full = pool(query, features, present=present)
    present[3] = False
    for info in (False, True):
        x = features.clone().requires_grad_()
        result = pool(query, x, present=present, return_info=info)
        output = result[0] if info else result
        others = [0, 1, 2, 4, 5, 6]
        tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(output[others], full[others], **tolerance)
        torch.testing.assert_close(output[3], pool.attention.out_proj.bias.expand_as(output[3]))
        pool.zero_grad()
        output.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in pool.parameters())
        assert x.grad.isfinite().all()
        assert not x.grad[3].any()
        if info:
            told = result[1]
            assert told["empty"].tolist() == [row == 3 for row in range(B)]
            assert not told["attention_weights"][3].any()
            assert not told["entropy"][3].any()
            assert all(x.isfinite().all() for x in told.values())


def test_empty_rows_can_be_refused() -> None:
    pool = pool_with(on_empty="raise")
    query, features = data()
    present = some_present()
    pool(query, features, present=present)
    present[[3, 5]] = False
    with pytest.raises(ValueError, match=r"every row must have a present modality, got none in rows \[3, 5\]"):
        pool(query, features, present=present)


def test_broken_content_that_is_present_shows() -> None:
    """No laundering: NaN that is declared present surfaces in its own row, and there only."""
    for queries in (None, 4):
        pool = pool_with(masking=CurriculumMasking(policy="entropy", target_rate=0.5)).train()
        query, features = data(queries=queries)
        features[4, 1] = math.nan
        torch.manual_seed(0)
        output = pool(query, features)
        assert output[4].isnan().all()
        assert output[[0, 1, 2, 3, 5, 6]].isfinite().all()


# --- drop law ---------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_realised_rate_is_the_documented_one(policy: str) -> None:
    from polyfuse.functional import expected_drop_rate

    masking = CurriculumMasking(policy=policy, target_rate=0.5)
    generator = torch.Generator().manual_seed(5)
    weights = (2 * torch.randn(20_000, 3, generator=generator)).softmax(-1)
    _, info = masking(weights, generator=generator)
    here = torch.ones(20_000, 3, dtype=torch.bool)
    assert info["mask_prob"].mean().item() == pytest.approx(0.5, abs=1e-4)
    expected = expected_drop_rate(info["mask_prob"], here)
    sigma = math.sqrt(0.25 / 60_000)
    assert abs(info["mask_rate"].mean() - expected.mean()) < 4 * sigma
    if policy == "uniform":
        assert expected[0].item() == pytest.approx(0.5 - 0.125 / 3)


@pytest.mark.parametrize("shape", [(5,), (1000, 5), (500, 2, 5), (250, 2, 2, 5)])
@pytest.mark.parametrize("min_active", [1, 2, 4])
def test_min_active_holds_over_many_draws(shape: tuple[int, ...], min_active: int) -> None:
    masking = CurriculumMasking(policy="uniform", target_rate=0.95, min_active=min_active)
    weights = torch.rand(*shape[:-1], 2, 5).softmax(-1)[..., 0, :]
    assert weights.ndim == 1 or not weights.is_contiguous()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3_400 if len(shape) == 1 else 10):
        kept = (masking(weights, generator=generator)[0] > 0).sum(-1)
        assert (kept >= min_active).all()


def test_min_active_counts_present_entries_only() -> None:
    masking = CurriculumMasking(policy="uniform", target_rate=1.0, min_active=2)
    present = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    weights, info = masking(torch.full((3, 4), 0.25), present=present)
    assert (weights > 0).sum(-1).tolist() == [2, 1, 0]
    assert not (weights > 0)[~present].any()
    torch.testing.assert_close(info["mask_rate"], torch.tensor([1 / 3, 0.0, 0.0]))


def test_the_ramp_scales_the_rate_and_stays_out_of_the_state() -> None:
    masking = CurriculumMasking(policy="uniform", target_rate=0.6)
    here = torch.ones(2, 3, dtype=torch.bool)
    weights = torch.full((2, 3), 1 / 3)
    for progress, rate in ((0.0, 0.0), (0.25, 0.15), (1.0, 0.6), (7.0, 0.6)):
        masking.set_progress(progress)
        torch.testing.assert_close(masking.drop_probability(weights, here), torch.full((2, 3), rate))
    assert masking.state_dict() == {}
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match="progress must be >= 0"):
            masking.set_progress(wrong)


def test_nothing_counts_in_forward() -> None:
    masking = CurriculumMasking()
    before = {name: value for name, value in vars(masking).items() if not isinstance(value, dict)}
    masking(torch.rand(3, 5).softmax(-1))
    assert before == {name: value for name, value in vars(masking).items() if not isinstance(value, dict)}
    assert masking._progress == 1.0


# --- function, sharing, state ---------------------------------


def test_the_function_with_weights_equals_the_module() -> None:
    pool = pool_with()
    for queries in (None, 4):
        query, features = data(queries=queries)
        attention = pool.attention
        arguments = {
            "in_proj_weight": attention.in_proj_weight,
            "in_proj_bias": attention.in_proj_bias,
            "out_proj_weight": attention.out_proj.weight,
            "out_proj_bias": attention.out_proj.bias,
            "present": some_present(),
        }
        output = multimodal_attention_pool(query, features, num_heads=H, **arguments)
        torch.testing.assert_close(output, pool(query, features, present=some_present()))
        assert torch.equal(output, multimodal_attention_pool(query, features, num_heads=H, **arguments))
        gradients = torch.autograd.grad(output.square().sum(), list(attention.parameters()))
        assert all(gradient.any() for gradient in gradients)


def test_the_function_masks_when_training_only() -> None:
    query, features = data()
    masking = CurriculumMasking(policy="uniform", target_rate=0.9).eval()
    torch.manual_seed(0)
    still = multimodal_attention_pool(query, features, curriculum_masking=masking)
    masked = multimodal_attention_pool(query, features, curriculum_masking=masking, training=True)
    torch.testing.assert_close(still, multimodal_attention_pool(query, features))
    assert not torch.allclose(masked, still)
    dropped = multimodal_attention_pool(query, features, dropout=0.5, training=True)
    assert not torch.allclose(dropped, still)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"embed_dim": 7}, "embed_dim must be the width of query, 20, got 7"),
        ({"num_heads": 5}, "num_heads = 5 needs in_proj_weight and out_proj_weight"),
        ({"num_heads": 3}, r"embed_dim \(20\) must be divisible by num_heads \(3\)"),
        ({"in_proj_weight": torch.zeros(60, 20)}, "give both in_proj_weight and out_proj_weight"),
        ({"present": torch.ones(2, 2, dtype=torch.bool)}, r"\(B, M\) = \(7, 3\), got \(2, 2\)"),
        ({"drop": torch.ones(B, M)}, r"drop must be bool .* got torch.float32"),
    ],
)
def test_the_function_checks_its_arguments(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        multimodal_attention_pool(*data(), **arguments)  # type: ignore[arg-type]
    query, features = data()
    with pytest.raises(RuntimeError, match=r"Key shape .* incompatible with query shape"):
        multimodal_attention_pool(query[..., :5], features)
    with pytest.raises(RuntimeError, match=r"Value shape .* incompatible with key shape"):
        multimodal_attention_pool(query, features, features[:, :2])


def test_two_pools_sharing_one_masking_do_not_interact() -> None:
    masking = CurriculumMasking(policy="uniform", target_rate=0.5)
    small, large = pool_with(masking=masking), pool_with(masking=masking)
    query, features = data()
    many = torch.randn(B, 8, D)
    _, alone = small(query, features, drop=torch.zeros(B, M, dtype=torch.bool), return_info=True)
    _, info = large(query, many, return_info=True)
    _, again = small(query, features, drop=torch.zeros(B, M, dtype=torch.bool), return_info=True)
    for name, value in alone.items():
        assert torch.equal(value, again[name])
    assert masking.entropy_loss(alone["entropy"], alone["target_entropy"]) == masking.entropy_loss(
        again["entropy"], again["target_entropy"]
    )
    torch.testing.assert_close(info["target_entropy"], torch.full((B, 1), 0.7 * math.log(8)))


def test_state_of_aecf_loads_and_outputs_agree() -> None:
    aecf = pytest.importorskip("aecf")
    torch.manual_seed(0)
    theirs = aecf.MultimodalAttentionPool(D, H, curriculum_masking=aecf.CurriculumMasking()).eval()
    state = theirs.state_dict()
    assert "curriculum_masking._eps" in state
    ours = pool_with(masking=CurriculumMasking()).eval()
    ours.load_state_dict(state)
    assert set(ours.state_dict()) == set(state) - {"curriculum_masking._eps"}
    masking = CurriculumMasking()
    masking.load_state_dict(aecf.CurriculumMasking().state_dict())
    wrapped = nn.ModuleDict({"pool": ours})
    wrapped.load_state_dict({f"pool.{name}": value for name, value in state.items()})
    query, features = data(queries=4)
    torch.testing.assert_close(ours(query, features), theirs(query, features), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        masking.load_state_dict({"_epsilon": torch.zeros(())})


# --- combinations of arguments ---------------------------------


def test_present_and_padding_say_the_same() -> None:
    pool = pool_with()
    query, features = data()
    present = some_present()
    expected = pool(query, features, present=present)
    torch.testing.assert_close(pool(query, features, key_padding_mask=~present), expected)
    additive = torch.zeros(B, M).masked_fill(~present, -math.inf)
    torch.testing.assert_close(pool(query, features, key_padding_mask=additive), expected)
    with pytest.raises(ValueError, match="not both"):
        pool(query, features, key_padding_mask=~present, present=present)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"present": torch.ones(B, M)}, r"present must be bool .* got torch.float32"),
        ({"present": torch.ones(B, 2, dtype=torch.bool)}, r"\(B, M\) = \(7, 3\), got \(7, 2\)"),
        ({"key_padding_mask": torch.ones(2, M, dtype=torch.bool)}, r"\(B, M\) = \(7, 3\), got \(2, 3\)"),
        ({"key_padding_mask": torch.ones(B, M, dtype=torch.long)}, "must be bool .* got torch.int64"),
        ({"attn_mask": torch.ones(1, 2, dtype=torch.bool)}, r"with M = 3, got \(1, 2\)"),
        ({"attn_mask": torch.ones(4, 1, M, dtype=torch.bool)}, r"\(B \* num_heads, T, M\) .*, got \(4, 1, 3\)"),
        ({"attn_mask": torch.ones(1, M, dtype=torch.long)}, "attn_mask must be bool .* got torch.int64"),
        ({"drop": torch.ones(B, 2, dtype=torch.bool)}, r"= \(7, 3\), got \(7, 2\)"),
        ({"generator": torch.Generator(), "use_checkpoint": True}, "generator is eager only"),
    ],
)
def test_masks_are_checked(arguments: dict[str, object], match: str) -> None:
    pool = pool_with(masking=CurriculumMasking())
    with pytest.raises(ValueError, match=match):
        pool(*data(), **arguments)


@pytest.mark.parametrize("additive", [False, True])
def test_attention_masks_equal_multihead_attention(additive: bool) -> None:
    pool = pool_with(torch.float64)
    query, features = data(torch.float64, queries=4)
    masks = torch.rand(B * H, 4, M, generator=torch.Generator().manual_seed(0)) < 0.3
    masks[..., 0] = False
    mask: Tensor = (
        masks if not additive else torch.randn(B * H, 4, M, dtype=torch.float64).masked_fill(masks, -math.inf)
    )
    padding = torch.zeros(B, M, dtype=torch.bool)
    padding[1, 2] = True
    padding = torch.zeros(B, M, dtype=torch.float64).masked_fill(padding, -math.inf) if additive else padding
    expected, weights = pool.attention(query, features, features, attn_mask=mask, key_padding_mask=padding)
    output, info = pool(query, features, attn_mask=mask, key_padding_mask=padding, return_info=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(info["attention_weights"], weights)
    expected, _ = pool.attention(query, features, features, attn_mask=mask[0])
    torch.testing.assert_close(pool(query, features, attn_mask=mask[0]), expected)


def test_a_query_that_may_attend_to_nothing_is_finite() -> None:
    pool = pool_with()
    query, features = data(queries=4)
    mask = torch.zeros(4, M, dtype=torch.bool)
    mask[2] = True
    output = pool(query, features, attn_mask=mask)
    torch.testing.assert_close(output[:, 2], pool.attention.out_proj.bias.expand(B, -1))
    output.sum().backward()
    assert pool.attention.in_proj_weight.grad.isfinite().all()


def test_sample_drop_needs_masking() -> None:
    with pytest.raises(ValueError, match="sample_drop needs curriculum_masking, got None"):
        pool_with().sample_drop(*data())


@pytest.mark.parametrize("batch_first", [True, False])
def test_sample_drop_respects_presence(batch_first: bool) -> None:
    pool = pool_with(masking=CurriculumMasking(policy="dominance", target_rate=0.8), batch_first=batch_first)
    query, features = (x if batch_first else x.transpose(0, 1) for x in data(queries=4))
    drop = pool.sample_drop(query, features, present=some_present(), generator=torch.Generator().manual_seed(0))
    assert drop.any()
    assert not (drop & ~some_present()).any()
    assert (some_present() & ~drop).any(-1).all()


# --- standalone masking with explicit masks ---------------------------------


def test_given_presence_is_honoured_in_evaluation() -> None:
    masking = CurriculumMasking().eval()
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    masked, info = masking(weights, present=torch.tensor([[True, True, False]]))
    torch.testing.assert_close(masked, torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    torch.testing.assert_close(info["target_entropy"], torch.tensor([0.7 * math.log(2)]))
    vector, _ = masking(weights[0], present=torch.tensor([True, True, False]))
    torch.testing.assert_close(vector, masked[0])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"present": torch.ones(2, 2, dtype=torch.bool)}, r"\(B, M\) = \(2, 3\), got torch.bool \(2, 2\)"),
        ({"present": torch.ones(2, 3)}, "got torch.float32"),
        ({"drop": torch.ones(2, 2, dtype=torch.bool)}, r"\(B, M\) = \(2, 3\), got \(2, 2\)"),
    ],
)
def test_masking_checks_its_masks(arguments: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CurriculumMasking()(torch.full((2, 3), 1 / 3), **arguments)


def test_masking_checks_the_new_arguments() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of .*, got 'rfc'"):
        CurriculumMasking(policy="rfc")
    with pytest.raises(ValueError, match=r"target_rate must be in \[0, 1\] or None, got 1.5"):
        CurriculumMasking(target_rate=1.5)
    with pytest.raises(TypeError, match=r"min_active must be an integer, got 1.5"):
        CurriculumMasking(min_active=1.5)  # type: ignore[arg-type]


def test_rows_share_a_mask_along_the_middle_axes() -> None:
    masking = CurriculumMasking(policy="uniform", target_rate=0.5)
    weights = torch.rand(50, 4, 3).softmax(-1)
    masked, info = masking(weights, generator=torch.Generator().manual_seed(0))
    zero = masked == 0
    assert torch.equal(zero, zero[:, :1].expand_as(zero))
    assert torch.equal(zero[:, 0], info["drop"])
    assert info["mask_rate"].shape == (50, 4)


def test_fusion_pool_is_the_pool_with_its_query() -> None:
    torch.manual_seed(0)
    fuse = FusionPool(D, M, H)
    _, features = data()
    output, info = fuse(features, some_present(), return_info=True)
    expected = fuse.pool(fuse.query, features, present=some_present()).squeeze(1)
    torch.testing.assert_close(output, expected)
    assert info["attention_weights"].shape == (B, M)


# --- found by breaking the code ---------------------------------


@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize("info", [False, True])
def test_a_given_drop_that_would_empty_a_row_is_ignored_there(queries: int | None, info: bool) -> None:
    pool = pool_with()
    query, features = data(queries=queries)
    drop = torch.zeros(B, M, dtype=torch.bool)
    drop[4] = True
    for present in (None, some_present()):
        result = pool(query, features, present=present, drop=drop, return_info=info)
        torch.testing.assert_close(result[0] if info else result, pool(query, features, present=present))
        if info:
            assert not result[1]["drop"].any()


@pytest.mark.parametrize("holes", [False, True])
def test_attention_dropout_is_the_same_on_both_paths(holes: bool) -> None:
    """It weighs the value bias too: the weights of a row no longer sum to 1."""
    pool = pool_with(torch.float64, dropout=0.5).train()
    query, features = data(torch.float64)
    present = some_present() if holes else None
    outputs = []
    for path in (query, query.expand(B, -1, -1).contiguous()):
        torch.manual_seed(0)
        outputs.append(pool(path, features, present=present))
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], pool.eval()(query, features, present=present))


@pytest.mark.parametrize("queries", [None, 4])
def test_minus_infinity_in_an_additive_mask_is_absence(queries: int | None) -> None:
    pool = pool_with()
    query, features = data(queries=queries)
    present = some_present()
    present[3] = False
    padding = torch.zeros(B, M).masked_fill(~present, -math.inf)
    broken = features.masked_fill(~present[..., None], math.nan)
    output, info = pool(query, broken, key_padding_mask=padding, return_info=True)
    torch.testing.assert_close(output, pool(query, features, present=present))
    assert torch.equal(info["empty"], ~present.any(-1))


def test_the_drop_probability_carries_no_gradient() -> None:
    for policy in POLICIES:
        weights = torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True)
        _, info = CurriculumMasking(policy=policy, target_rate=0.5)(weights)
        assert not info["mask_prob"].requires_grad
