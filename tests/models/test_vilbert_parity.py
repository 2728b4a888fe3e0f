"""ViLBERT equals a plain reference on the original names, outputs and gradients; every known trap would be seen."""

from typing import Any

import pytest
import torch
from tests.models.reference_vilbert import WRONG, Reference, encoder_shapes, filled, head_shapes
from torch import Tensor

from polyfuse.models.convert import write_original
from polyfuse.models.vilbert import ViLBERT

# Distinct numbers wherever two could be taken for one another; L = R, so that swapped streams would go unnoticed.
CONFIG: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 15,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 19,
    "max_position_embeddings": 13,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "v_feature_size": 17,
    "v_target_size": 11,
    "v_hidden_size": 14,
    "v_num_hidden_layers": 4,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 23,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_attention_probs_dropout_prob": 0.1,
    "bi_hidden_size": 26,
    "bi_num_attention_heads": 2,
    "bi_intermediate_size": 1024,
    "bi_attention_type": 1,
    "v_biattention_id": [0, 2],
    "t_biattention_id": [1, 3],
    "pooling_method": "mul",
}
B, T = 4, 7


def original(kind: str = "multi-task", dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[dict, dict]:
    config = {**CONFIG, **changes}
    shapes = encoder_shapes(config, 20 if config.get("task_specific_tokens") else 0)
    state = filled(shapes | (head_shapes(config, kind) if kind != "encoder" else {}), dtype)
    if kind in ("pretraining", "multi-task", "beta"):
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    return state, config


def batch_of(config: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Padding as the original's data code leaves it: zeros."""
    generator = torch.Generator().manual_seed(11)
    text_mask = torch.arange(T)[None] < torch.tensor([7, 5, 3, 1])[:, None]
    region_mask = torch.arange(T)[None] < torch.tensor([2, 7, 1, 6])[:, None]
    boxes = torch.rand(B, T, 5, generator=generator, dtype=dtype)
    features = torch.randn(B, T, config["v_feature_size"], generator=generator, dtype=dtype)
    batch = {
        "input_ids": torch.randint(1, config["vocab_size"], (B, T), generator=generator) * text_mask,
        "token_type_ids": torch.randint(0, config["type_vocab_size"], (B, T), generator=generator) * text_mask,
        "text_mask": text_mask,
        "region_features": features * region_mask[..., None],
        "region_boxes": boxes * region_mask[..., None],
        "region_mask": region_mask,
    }
    if config.get("task_specific_tokens"):
        batch["task_ids"] = torch.tensor([[3], [19], [0], [7]])
    return batch


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours)


CASES = {
    "multi-task": ("multi-task", {}),
    "task tokens": ("multi-task", {"task_specific_tokens": True}),
    "beta": ("beta", {}),
    "pretraining, sum": ("pretraining", {"fusion_method": "sum"}),
    "mmf classifier": ("mmf-classifier", {}),
    "dynamic attention": ("multi-task", {"dynamic_attention": True}),
    "no co-attention": ("multi-task", {"with_coattention": False}),
    "roberta": ("pretraining", {"model": "roberta", "type_vocab_size": 1}),
    "connections behind the last layers": ("pretraining", {"v_biattention_id": [1, 4], "t_biattention_id": [3, 5]}),
    "one connection": ("pretraining", {"v_biattention_id": [3], "t_biattention_id": [0]}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    kind, changes = CASES[name]
    state, config = original(kind, **changes)
    if kind == "mmf-classifier":
        source = {f"model.{key}": value for key, value in state.items()}
    else:
        source = state
    model = ViLBERT.from_original(source, config)
    batch = batch_of(config)
    ours, theirs = model(**batch).info, Reference(state, config)(batch)
    assert len(theirs) > 5
    assert difference(ours, theirs) < 1e-11


def test_equals_the_reference_in_single_precision() -> None:
    state, config = original(dtype=torch.float32)
    batch = batch_of(config, torch.float32)
    ours, theirs = ViLBERT.from_original(state, config)(**batch).info, Reference(state, config)(batch)
    for outputs in (ours, theirs):  # next to -10000 a single number is good to 1e-3 only
        outputs["vision_logit_logits"] = outputs["vision_logit_logits"][batch["region_mask"]]
    assert difference(ours, theirs) < 1e-5


def _loss(outputs: dict[str, Tensor]) -> Tensor:
    """Every number of every output counts, each differently."""
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(outputs):
        flat = outputs[name].flatten()
        flat = flat[flat > -5000]  # absent regions carry -10000
        total = total + (flat * torch.cos(torch.arange(flat.numel(), dtype=flat.dtype))).sum()
    return total


@pytest.mark.parametrize("name", ["multi-task", "task tokens", "beta", "dynamic attention"])
def test_gradients_equal_the_reference(name: str) -> None:
    kind, changes = CASES[name]
    state, config = original(kind, **changes)
    batch = batch_of(config)
    model = ViLBERT.from_original(state, config)
    leaves = {key: value.clone().requires_grad_() for key, value in state.items() if "decoder.weight" not in key}
    leaves["cls.imagePredictions.decoder.weight"] = (
        state["cls.imagePredictions.decoder.weight"].clone().requires_grad_()
    )
    leaf_inputs = [batch[name].requires_grad_() for name in ("region_features", "region_boxes")]
    ours = torch.autograd.grad(_loss(model(**batch).info), leaf_inputs)
    theirs = torch.autograd.grad(_loss(Reference(leaves, config)(batch)), leaf_inputs)
    here = batch["region_mask"][..., None]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other * here, rtol=0, atol=1e-9)
        assert mine.abs().max() > 1e-2
    _loss(model(**batch).info).backward()
    _loss(Reference(leaves, config)(batch)).backward()
    gradients = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    gradients |= {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    rules, _ = model.original_rules(None, None)
    found = write_original(gradients, rules)
    unused = 0
    for key, leaf in leaves.items():
        if leaf.grad is None:  # trap 3
            assert ".biOutput.q_dense" in key
            assert not found[key].any()
            unused += 1
            continue
        torch.testing.assert_close(
            found[key], leaf.grad, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert unused == 4 * len(config["v_biattention_id"])


NEEDS_TASKS = {"task_in_front", "task_has_position", "task_not_normed"}
#: Mistakes that change less than the rest; everything else moves some output by more than a hundredth.
SMALL = {"eps": 1e-7, "gelu_tanh": 1e-4}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_trap_is_seen(wrong: str) -> None:
    """The comparison above fails for each known way to wire the model wrongly."""
    state, config = original(task_specific_tokens=wrong in NEEDS_TASKS)
    batch = batch_of(config)
    co_mask = torch.rand(B, T, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = Reference(state, config, wrong)(batch, co_mask)
    assert difference(ViLBERT.from_original(state, config)(**batch).info, theirs) > SMALL.get(wrong, 1e-2)


def test_a_co_attention_mask_changes_nothing_in_the_original_and_is_no_argument_of_ours() -> None:
    state, config = original()
    batch = batch_of(config)
    plain = Reference(state, config)(batch)
    assert difference(plain, Reference(state, config)(batch, torch.rand(B, T, T, dtype=torch.float64))) == 0
    with pytest.raises(TypeError, match="co_attention_mask"):
        ViLBERT.from_original(state, config)(**batch, co_attention_mask=torch.zeros(B, T, T))


def test_a_task_token_lengthens_the_text_by_one_and_is_never_masked() -> None:
    state, config = original(task_specific_tokens=True)
    model, batch = ViLBERT.from_original(state, config), batch_of(config)
    output = model(**batch)
    assert output.text.shape == (B, T + 1, 15)
    assert output.mlm_logits.shape == (B, T + 1, 31)
    other = model(**{**batch, "task_ids": torch.tensor([3, 19, 0, 8])})
    assert torch.equal(other.text[:3], output.text[:3])  # (B,) is as good as (B, 1)
    assert (other.text[3] - output.text[3]).abs().max() > 1e-3  # the row has one word: the task is read all the same


def test_positions_of_roberta_start_at_0_as_they_do_in_the_original() -> None:
    state, config = original("encoder", model="roberta", type_vocab_size=1)
    model = ViLBERT.from_original(state, config)
    assert model.config["first_position"] == 0
    batch = batch_of(config)
    assert difference(model(**batch).info, Reference(state, config)(batch)) < 1e-11


def test_dropouts_are_those_of_the_stream_that_owns_them() -> None:
    state, config = original(
        "encoder",
        hidden_dropout_prob=0.11,
        attention_probs_dropout_prob=0.13,
        v_hidden_dropout_prob=0.17,
        v_attention_probs_dropout_prob=0.19,
    )
    model = ViLBERT.from_original(state, config)
    assert (model.embeddings.dropout, model.region_embeddings.dropout) == (0.11, 0.11)  # the text's in both
    assert (model.text_layers[0].dropout, model.text_layers[0].attention.dropout) == (0.11, 0.13)
    assert (model.region_layers[0].dropout, model.region_layers[0].attention.dropout) == (0.17, 0.19)
    connection = model.connections[0]
    assert connection.dropout == (0.17, 0.11)
    assert connection.co_attention.dropout == (0.13, 0.19)  # regions read the text: its dropout
    model.train()
    torch.manual_seed(0)
    connection.co_attention.dropout = (1.0, 0.0)
    x, y = torch.randn(2, 3, 14, dtype=torch.float64), torch.randn(2, 5, 15, dtype=torch.float64)
    first, second = connection.co_attention(x, y)
    torch.testing.assert_close(first, connection.co_attention.out[0].bias.expand_as(first))
    assert (second - connection.co_attention.out[1].bias).abs().max() > 1e-2
