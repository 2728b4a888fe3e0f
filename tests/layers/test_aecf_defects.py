"""Every defect found in aecf 0.1.0 is a check that polyfuse passes and aecf 0.1.0 itself fails.

The second half of that sentence is tested too, so no check can go soft unnoticed. Numbers are those of the list of
defects in docs/migrating-from-aecf.md.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyfuse.layers

CHECKS: dict[str, Callable[[ModuleType], None]] = {}


def defect(check: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    CHECKS[check.__name__] = check
    return check


def masking_of(lib: ModuleType, *arguments: Any, **kwargs: Any) -> Any:
    """A masking with the entropy policy, which is the only one aecf 0.1.0 has."""
    if lib is polyfuse.layers:
        kwargs.setdefault("policy", "entropy")
    return lib.CurriculumMasking(*arguments, **kwargs)


def pool_of(lib: ModuleType, width: int = 16, heads: int = 2, **kwargs: Any) -> Any:
    torch.manual_seed(7)
    return lib.MultimodalAttentionPool(width, heads, **kwargs)


def inputs(batch: int = 61, queries: int = 1, keys: int = 3, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(batch, queries, width, generator=generator),
        torch.randn(batch, keys, width, generator=generator),
    )


@defect
def d01_masks_reach_the_output(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, curriculum_masking=masking_of(lib, 1.0)), inputs()
    outputs = []
    for seed in range(2):
        torch.manual_seed(seed)
        outputs.append(pool(query, features))
    assert not torch.equal(*outputs)


@defect
def d02_the_entropy_loss_moves_parameters_in_training(lib: ModuleType) -> None:
    masking = masking_of(lib)
    pool, (query, features) = pool_of(lib, curriculum_masking=masking), inputs()
    _, info = pool(query, 3 * features, return_info=True)
    masking.entropy_loss(info["entropy"]).backward()
    assert pool.attention.in_proj_weight.grad.any()


@defect
def d03_the_entropy_gradient_is_finite_with_padded_keys(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, curriculum_masking=masking_of(lib)), inputs()
    padding = torch.zeros(61, 3, dtype=torch.bool)
    padding[::2, 2] = True
    _, info = pool.eval()(query, features, key_padding_mask=padding, return_info=True)
    info["entropy"].sum().backward()
    assert pool.attention.in_proj_weight.grad.isfinite().all()


@defect
def d04_a_row_with_nothing_present_is_finite(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, curriculum_masking=masking_of(lib)), inputs()
    padding = torch.zeros(61, 3, dtype=torch.bool)
    padding[5] = True
    output, info = pool(query, features, key_padding_mask=padding, return_info=True)
    assert output.isfinite().all()
    assert info["entropy"][5] == 0
    output[6:].sum().backward()  # the row is not even in the loss
    assert pool.attention.in_proj_weight.grad.isfinite().all()


@defect
def d05_half_precision_survives_rows_without_weight(lib: ModuleType) -> None:
    masking = masking_of(lib).half()
    weights, _ = masking(torch.tensor([[0.0, 0.0], [0.5, 0.5]]).half())
    assert weights.isfinite().all()
    pool = pool_of(lib, dropout=0.5, curriculum_masking=masking).half().train()
    torch.manual_seed(0)
    query, features = (x.half() for x in inputs(keys=2))
    assert pool(query, features).isfinite().all()


@defect
def d06_checkpointing_replays_dropout(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, dropout=0.5), inputs(queries=2)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(11)
        pool.zero_grad()
        pool(query, features, use_checkpoint=use_checkpoint).square().sum().backward()
        gradients.append(pool.attention.in_proj_weight.grad.clone())
    torch.testing.assert_close(*gradients)


@defect
def d07a_the_function_computes_one_function(lib: ModuleType) -> None:
    query, features = inputs()
    outputs = [lib.multimodal_attention_pool(query, features, curriculum_masking=masking_of(lib)) for _ in range(2)]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], lib.multimodal_attention_pool(query, features))


@defect
def d07b_the_function_takes_any_float_type(lib: ModuleType) -> None:
    query, features = (x.double() for x in inputs())
    output = lib.multimodal_attention_pool(query, features, curriculum_masking=masking_of(lib), training=True)
    assert output.dtype == torch.float64


@defect
def d07c_the_function_has_no_side_effect(lib: ModuleType) -> None:
    masking = masking_of(lib).train()
    lib.multimodal_attention_pool(*inputs(), curriculum_masking=masking, training=False)
    assert masking.training


@defect
def d07d_the_function_trains_weights(lib: ModuleType) -> None:
    weights = [torch.randn(48, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)]
    query, features = inputs()
    output = lib.multimodal_attention_pool(
        query, features, num_heads=2, in_proj_weight=weights[0], out_proj_weight=weights[1]
    )
    output.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)


@defect
def d08_attention_dropout_stays_out_of_the_statistics(lib: ModuleType) -> None:
    query, features = inputs(keys=2)
    entropies = []
    for dropout in (0.0, 0.5):
        pool = pool_of(lib, dropout=dropout, curriculum_masking=masking_of(lib))
        _, info = pool(query, features, return_info=True)
        torch.testing.assert_close(info["attention_weights"].sum(-1), torch.ones(61, 1))
        entropies.append(info["entropy"])
    torch.testing.assert_close(*entropies)


@defect
def d09_padding_is_not_counted(lib: ModuleType) -> None:
    pool = pool_of(lib, curriculum_masking=masking_of(lib, 1e-9))
    query, _ = inputs()
    features = torch.ones(61, 8, 16)  # equal keys: uniform weights
    padding = torch.ones(61, 8, dtype=torch.bool)
    padding[:, [1, 4]] = False
    _, info = pool(query, features, key_padding_mask=padding, return_info=True)
    torch.testing.assert_close(info["entropy"], torch.full((61, 1), math.log(2)))
    torch.testing.assert_close(info["target_entropy"], torch.full((61, 1), 0.7 * math.log(2)))


@defect
def d10_the_loss_has_no_memory(lib: ModuleType) -> None:
    masking = masking_of(lib)
    entropy = torch.tensor([0.3, 0.1])
    before = masking.entropy_loss(entropy)
    masking(torch.rand(4, 8).softmax(-1))  # another pool of eight modalities shares the module
    assert torch.equal(before, masking.entropy_loss(entropy))


@defect
def d11a_min_active_holds_for_vectors(lib: ModuleType) -> None:
    masking = masking_of(lib, 1.0, min_active=2)
    for seed in range(50):
        torch.manual_seed(seed)
        weights, info = masking(torch.full((5,), 0.2))
        kept = int((weights > 0).sum())
        assert kept >= 2
        assert info["mask_rate"].item() == pytest.approx(1 - kept / 5)


@defect
def d11b_non_contiguous_weights_of_any_rank(lib: ModuleType) -> None:
    masking = masking_of(lib, 1.0, min_active=2)
    weights = torch.rand(7, 5, 3, 4).softmax(-1).transpose(1, 2)
    for seed in range(20):
        torch.manual_seed(seed)
        assert ((masking(weights)[0] > 0).sum(-1) >= 2).all()


@defect
def d12_survivors_do_not_depend_on_the_weight(lib: ModuleType) -> None:
    torch.manual_seed(0)
    dropped = masking_of(lib, 0.9)(torch.full((20_000, 3), 1 / 3))[0] == 0
    law = 0.9 - 0.9**3 / 3
    assert (dropped.float().mean(0) - law).abs().max() < 4 * math.sqrt(law * (1 - law) / 20_000)


@defect
def d13_the_default_masks_collapsed_attention(lib: ModuleType) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[0.99, 0.01]]).expand(20_000, -1)
    _, info = lib.CurriculumMasking()(weights)
    assert info["mask_rate"].mean() > 0.1


@defect
def d14_one_mask_for_all_query_positions(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, curriculum_masking=masking_of(lib, 0.5)), inputs(queries=4)
    torch.manual_seed(0)
    _, info = pool(query, features, return_info=True)
    zero = info["masked_attention_weights"] == 0
    assert zero.any()
    assert torch.equal(zero, zero[:, :1].expand_as(zero))


@defect
def d15_the_entropy_of_single_heads_is_told(lib: ModuleType) -> None:
    pool, (query, features) = pool_of(lib, heads=8, curriculum_masking=masking_of(lib)), inputs()
    _, info = pool(query, 5 * features, return_info=True)
    assert (info["head_entropy"] < info["entropy"]).all()


@defect
def d16_even_weights_are_not_punished(lib: ModuleType) -> None:
    assert masking_of(lib).entropy_loss(torch.tensor([math.log(2)])) == 0.0


@defect
def d17a_the_factory_places_the_query_too(lib: ModuleType) -> None:
    query, pool = lib.create_fusion_pool(16, 3, dtype=torch.float64)
    assert query.dtype == pool.attention.in_proj_weight.dtype == torch.float64


@defect
def d17b_the_factory_takes_another_masking_or_none(lib: ModuleType) -> None:
    masking = masking_of(lib, 0.4)
    assert lib.create_fusion_pool(16, 3, curriculum_masking=masking)[1].curriculum_masking is masking
    assert lib.create_fusion_pool(16, 3, curriculum_masking=None)[1].curriculum_masking is None


@defect
def d17c_the_factory_knows_an_integer_when_it_sees_one(lib: ModuleType) -> None:
    query, _ = lib.create_fusion_pool(np.int64(16), np.int32(3), mask_prob=np.float32(0.5))
    assert query.shape == (1, 1, 16)
    with pytest.raises(ValueError, match="num_modalities must be a positive integer, got True"):
        lib.create_fusion_pool(16, True)


@defect
def d18a_broken_weights_are_told_alike_in_training_and_evaluation(lib: ModuleType) -> None:
    weights = torch.tensor([[0.5, math.nan, 0.5], [0.4, 0.3, 0.3]])
    for training in (True, False):
        masked, info = lib.CurriculumMasking().train(training)(weights)
        assert masked.isfinite().all()
        assert info["nonfinite"].tolist() == [True, False]


@defect
def d18b_negative_weights_do_not_crash(lib: ModuleType) -> None:
    torch.manual_seed(0)
    masking_of(lib)(torch.tensor([[-5.0, 3.0, 3.0], [0.2, 0.3, 0.5]]))


@defect
def d19_no_randomness_is_spent_without_effect(lib: ModuleType) -> None:
    masking = masking_of(lib, 1.0)
    query, features = inputs()
    pool = pool_of(lib, curriculum_masking=masking)
    before = torch.get_rng_state()
    pooled = pool(query, features)
    spent = not torch.equal(before, torch.get_rng_state())
    assert not spent or not torch.allclose(pooled, pool_of(lib)(query, features), atol=1e-5)


@defect
def d20_modalities_may_be_missing_per_row(lib: ModuleType) -> None:
    query, pool = lib.create_fusion_pool(16, 3)
    _, features = inputs()
    present = torch.ones(61, 3, dtype=torch.bool)
    present[::2, 1] = False
    output = pool.eval()(query, features, present=present)
    features[::2, 1] = math.nan
    torch.testing.assert_close(pool(query, features, present=present), output)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_polyfuse_is_free_of(name: str) -> None:
    CHECKS[name](polyfuse.layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_aecf_has(name: str) -> None:
    aecf = pytest.importorskip("aecf")
    with pytest.raises((AssertionError, RuntimeError, TypeError, KeyError, ValueError, pytest.fail.Exception)):
        CHECKS[name](aecf)
