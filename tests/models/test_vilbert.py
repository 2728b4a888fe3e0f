"""ViLBERT: published sizes, original layouts both ways, refusals, absent rows, gradients, folders, graphs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.reference_vilbert import Reference
from tests.models.test_vilbert_parity import B, batch_of, difference, original
from torch import Tensor, nn

from polyfuse.models import MODELS
from polyfuse.models import vilbert_sizes as sizes
from polyfuse.models.vilbert import ViLBERT
from polyfuse.models.vilbert_heads import ALIGNED
from polyfuse.models.vilbert_layers import schedule
from polyfuse.models.vilbert_regions import box_shares, with_whole_image

PRETRAINING = ("mlm", "region", "pair")
TASKS = (*PRETRAINING, "vqa", "gqa", "binary", "tri", "logit", "vision_logit", "text_logit")


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    ("builder", "task_tokens", "encoder", "pretraining", "tasks"),
    [
        (sizes.vilbert_base, 0, 246_726_656, 250_044_029, 268_013_499),
        (sizes.vilbert_base, 20, 246_742_016, 250_059_389, 268_028_859),
        (sizes.vilbert_base_2, 0, 157_465_600, 160_782_973, 178_752_443),
    ],
)
def test_counts_of_the_published_sizes(
    builder: Any, task_tokens: int, encoder: int, pretraining: int, tasks: int
) -> None:
    with torch.device("meta"):
        model = builder(task_tokens=task_tokens)
        assert parameters(model) == encoder
        assert parameters(model.attach(*PRETRAINING)) == pretraining
        assert len(model.to_original()) == {6: 533, 2: 533 - 4 * 52}[len(model.connections)] + bool(task_tokens)
        assert parameters(model.attach(*TASKS)) == tasks


def test_every_size_is_registered_and_builds_without_arguments() -> None:
    names = ("base", "base_2", "base_4", "base_8", "large_2", "large_4", "large_6", "roberta", "tiny")
    for name in names:
        with torch.device("meta"):
            model = MODELS[f"vilbert_{name}"](head_dropout=0.2)
        assert model.head_dropout == 0.2
    with torch.device("meta"):
        large, eight, roberta = sizes.vilbert_large_4(), sizes.vilbert_base_8(), sizes.vilbert_roberta()
    assert (large.config["text_connections"], large.config["region_layers"]) == ([20, 21, 22, 23], 4)
    assert (eight.config["text_connections"], len(eight.region_layers)) == (list(range(4, 12)), 8)
    assert roberta.embeddings.words.num_embeddings == 50265
    assert roberta.embeddings.positions.num_embeddings == 514


def test_the_first_connection_sees_six_text_layers_and_no_region_layer() -> None:
    with torch.device("meta"):
        steps = sizes.vilbert_base().schedule
    before = steps[: steps.index(("connection", 0))]
    assert before == [("text", index) for index in range(6)]
    assert steps[-2:] == [("region", 5), ("text", 11)]
    assert sorted(steps) == sorted(
        [("text", i) for i in range(12)] + [(kind, i) for kind in ("region", "connection") for i in range(6)]
    )


@pytest.mark.parametrize(
    ("kind", "layout", "spell"),
    [
        ("multi-task", "multi-task", lambda key: key),
        ("multi-task", "multi-task", lambda key: f"module.{key}"),
        ("pretraining", "multi-task", lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma")),
        ("pretraining", "multi-task", lambda key: key.replace("LayerNorm.bias", "LayerNorm.beta")),
        ("beta", "beta", lambda key: key),
        ("pretraining", "mmf", lambda key: f"model.{key}"),
        ("mmf-classifier", "mmf", lambda key: f"model.{key}"),
        ("mmf-classifier", "mmf", lambda key: key if key.startswith("bert.bert") else f"bert.{key}"),
        ("encoder", "bare", lambda key: key.removeprefix("bert.")),
        ("encoder", "multi-task", lambda key: key),
    ],
)
def test_layouts_round_trip_bit_for_bit(kind: str, layout: str, spell: Any, tmp_path: Path) -> None:
    state, config = original(kind)
    torch.save({spell(key): value for key, value in state.items()}, tmp_path / "model.bin")
    model = ViLBERT.from_original(tmp_path / "model.bin", config)
    back = model.to_original(layout)
    start = "model." if layout == "mmf" else ""
    plain = {(key.removeprefix("bert.") if layout == "bare" else start + key): value for key, value in state.items()}
    if layout == "mmf" and kind == "pretraining":
        plain["model.cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    assert back.keys() == plain.keys()
    assert all(torch.equal(back[key], plain[key]) for key in plain)
    assert difference(model(**batch_of(config)).info, Reference(state, config)(batch_of(config))) < 1e-11


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_training_run_in_memory_is_read_like_its_tensors(wrapper: str) -> None:
    state, config = original()
    run = {wrapper: {f"module._orig_mod.{key}": value for key, value in state.items()}, "epoch": 3, "optimizer": {}}
    model = ViLBERT.from_original(run, config)
    assert all(torch.equal(value, state[key]) for key, value in model.to_original().items())


@pytest.mark.parametrize("part", ["", "dense.weight"])
def test_half_precision_becomes_float32(part: str) -> None:
    """As in the authors' loader, which copies into a float32 model; a model in two precisions cannot run at all."""
    state, config = original(dtype=torch.float32)
    for_half = {key: value.half() if key.endswith(part) else value for key, value in state.items()}
    rounded = {key: value.float() for key, value in for_half.items()}
    assert not torch.equal(rounded["bert.t_pooler.dense.weight"], state["bert.t_pooler.dense.weight"])
    ours, expected = ViLBERT.from_original(for_half, config), ViLBERT.from_original(rounded, config)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    batch = batch_of(config, torch.float32)
    assert torch.equal(ours(**batch).pooled, expected(**batch).pooled)


def test_an_untied_word_head_is_kept_apart() -> None:
    state, config = original("pretraining")
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    model = ViLBERT.from_original(state, config)
    back = model.to_original()
    assert all(torch.equal(back[key], state[key]) for key in state)
    text = model(**batch_of(config)).text
    hidden = Reference(state, config).transform(text, "cls.predictions.transform")
    expected = hidden @ state["cls.predictions.decoder.weight"].T + state["cls.predictions.bias"]
    torch.testing.assert_close(model(**batch_of(config)).mlm_logits, expected)


def test_what_a_config_leaves_out_has_the_defaults_of_the_original() -> None:
    with torch.device("meta"):
        state = ViLBERT(
            region_dim=768,
            region_layers=3,
            region_heads=12,
            region_hidden_dim=3072,
            text_connections=(10, 11),
            region_connections=(0, 1),
        ).to_original()
        model = ViLBERT.from_original(state, {})
    assert model.config["co_heads"] == 16
    assert model.config["region_hidden_dim"] == 3072


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c: s.pop("bert.v_pooler.dense.bias"), "missing bert.v_pooler.dense.bias"),
        (lambda s, c: s.update({"cls.other": torch.zeros(1)}), "cannot map cls.other"),
        (
            lambda s, c: s.update({"bert.t_pooler.dense.bias": torch.zeros(3)}),
            r"t_pooler.dense.bias is \(3,\), expected",
        ),
        (lambda s, c: c.update(num_hidden_layers=4), r"cannot map bert.encoder.layer.4"),
        (lambda s, c: c.update(task_specific_tokens=True), "missing bert.embeddings.task_embeddings.weight"),
        (lambda s, c: c.update(in_batch_pairs=True), "in_batch_pairs = True is not supported"),
        (lambda s, c: c.update(model="gpt"), "model = 'gpt' is not supported"),
        (lambda s, c: c.update(hidden_act="mish"), "hidden_act = 'mish' is not supported"),
        (lambda s, c: c.update(fusion_method="cat"), "fusion must be one of mul, sum, got 'cat'"),
        (lambda s, c: c.update(t_biattention_id=[3, 1]), r"text_connections must rise within 0..5, got \[3, 1\]"),
        (lambda s, c: c.update(t_biattention_id=[3]), "must pair up, got 1 and 2"),
        (lambda s, c: c.update(fixed_t_layer=2), r"fixed_text_layers must be within 0..1, .* got 2"),
    ],
)
def test_from_original_refuses_what_does_not_fit(change: Any, message: str) -> None:
    state, config = original()
    change(state, config)
    with pytest.raises(ValueError, match=message):
        ViLBERT.from_original(state, config)


def test_from_original_needs_a_config_and_a_layout_it_knows() -> None:
    state, config = original("encoder")
    with pytest.raises(ValueError, match="needs its config"):
        ViLBERT.from_original(state)
    with pytest.raises(ValueError, match="layout must be one of multi-task, beta, mmf, bare, got 'hf'"):
        ViLBERT.from_original(state, config, layout="hf")
    with pytest.raises(ValueError, match="layout = 'mmf', but these are the names of 'multi-task'"):
        ViLBERT.from_original(state, config, layout="mmf")
    model = ViLBERT.from_original(state, config)
    for task, layout in (("gqa", "beta"), ("vqa", "beta"), ("tri", "mmf"), ("pair", "bare")):
        with pytest.raises(ValueError, match=rf"layout '{layout}' has no names for the heads .*{task}"):
            model.attach(task).to_original(layout)


def test_region_heads_have_the_width_of_their_target() -> None:
    model = sizes.vilbert_tiny()
    widths = {
        mode: model.attach("region", mode=mode).heads["region"].decoder.out_features for mode in ("kl", "mse", "nce")
    }
    assert widths == {"kl": 17, "mse": 24, "nce": 24}
    with pytest.raises(ValueError, match="mode must be one of kl, mse, nce, got 'l1'"):
        model.attach("region", mode="l1")
    state, config = original("pretraining", visual_target=1, v_target_size=17)
    assert ViLBERT.from_original(state, config).head_config["region"] == {"mode": "mse", "width": 17}


def inputs(rows: int = B, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, 61, (rows, 5), generator=generator),
        "token_type_ids": torch.randint(0, 2, (rows, 5), generator=generator),
        "text_mask": torch.arange(5)[None] < torch.randint(2, 6, (rows, 1), generator=generator),
        "region_features": torch.randn(rows, 3, 24, generator=generator),
        "region_boxes": torch.rand(rows, 3, 5, generator=generator),
        "region_mask": torch.arange(3)[None] < torch.randint(1, 4, (rows, 1), generator=generator),
    }


def tiny(**kwargs: Any) -> ViLBERT:
    torch.manual_seed(0)
    return sizes.vilbert_tiny(initializer_range=0.3, **kwargs).attach(*TASKS)


@pytest.mark.parametrize(
    "change",
    [
        {"region_boxes": torch.rand(B, 3, 7)},
        {"region_features": torch.rand(B, 3, 23)},
        {"region_mask": torch.ones(B, 4, dtype=torch.bool)},
        {"text_mask": torch.zeros(B, 5)},
        {"region_features": None},
        {"task_ids": torch.zeros(B, dtype=torch.long)},
        {"tasks": ["caption"]},
    ],
)
def test_forward_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    known = {
        "region_boxes": r"region_boxes must be \(4, 3, 5\).*got \(4, 3, 7\)",
        "region_features": r"region_features (must be \(B, R, 24\), got \(4, 3, 23\)|is required, got None)",
        "region_mask": r"region_mask must be \(4, 3\), got \(4, 4\)",
        "text_mask": "text_mask must be bool, True = present, got torch.float32",
        "task_ids": "task_ids needs a model with task tokens",
        "tasks": "no head attached for",
    }
    with pytest.raises(ValueError, match=known[next(iter(change))]):
        tiny()(**{**inputs(), **change})


def test_task_tokens_need_tasks_and_pairs_need_pairs() -> None:
    with pytest.raises(ValueError, match="20 task tokens needs task_ids"):
        tiny(task_tokens=20)(**inputs())
    model = tiny().eval()
    with pytest.raises(ValueError, match="binary reads pairs of rows, got 3 rows"):
        model(**inputs(3), tasks=["binary"])
    assert model(**inputs(3)).binary_logits.shape == (1, 2)
    assert model(**inputs(1)).binary_logits.shape == (0, 2)


def broken(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Nonsense wherever something is absent."""
    words, here = ~batch["text_mask"], ~batch["region_mask"][..., None]
    return {
        **batch,
        "input_ids": batch["input_ids"].masked_fill(words, 60),
        "token_type_ids": batch["token_type_ids"].masked_fill(words, 1),
        "region_features": batch["region_features"].masked_fill(here, math.nan),
        "region_boxes": batch["region_boxes"].masked_fill(here, math.inf),
    }


@pytest.mark.parametrize("dynamic", [False, True])
def test_absent_rows_are_finite_and_nothing_absent_is_read(dynamic: bool) -> None:
    model = tiny(dynamic_attention=dynamic).eval()
    batch = inputs()
    batch["text_mask"][0] = False
    batch["region_mask"][1] = False
    batch["text_mask"][2] = batch["region_mask"][2] = False
    bad = broken(batch)
    bad["region_features"].requires_grad_()
    out, other = model(**bad).info, model(**batch).info
    for name in out:
        torch.testing.assert_close(out[name], other[name], rtol=0, atol=0)
        assert out[name].isfinite().all()
    sum(value.square().sum() for value in out.values()).backward()
    gradient = bad["region_features"].grad
    assert not gradient[~batch["region_mask"]].any()
    assert gradient[batch["region_mask"]].abs().amax(-1).all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    seen = model(**{**batch, "region_mask": torch.ones_like(batch["region_mask"])})
    assert (seen.text[0] - out["text"][0]).abs().max() > 1e-3  # the mask is really used


def test_rows_do_not_mix() -> None:
    model, batch = tiny().eval(), inputs()
    whole = model(**batch)
    for row in range(B):
        alone = model(**{name: value[row : row + 1] for name, value in batch.items()}, tasks=["pair", "mlm"])
        torch.testing.assert_close(alone.pair_logits[0], whole.pair_logits[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.mlm_logits[0], whole.mlm_logits[row], rtol=0, atol=1e-4)


def test_one_text_against_many_images_equals_the_text_repeated() -> None:
    model, batch = tiny().eval(), inputs()
    names = ("input_ids", "token_type_ids", "text_mask")
    one = {name: batch[name][1:2] for name in names}
    repeated = {name: value.expand(B, -1) for name, value in one.items()}
    fast, slow = model(**{**batch, **one}), model(**{**batch, **repeated})
    for name in fast.info:
        torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"task_tokens": 5}, {"dynamic_attention": True}, {"fusion": "sum"}, {"co_attention": False}]
)
def test_every_trainable_parameter_has_a_gradient(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    if "task_tokens" in changes:
        changes = {"task_ids": torch.tensor([0, 1, 2, 3])}
    else:
        changes = {}
    output = model(**inputs(), **changes)
    sum(value.square().sum() for value in output.info.values()).backward()
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert all(".unused." in name for name in frozen) or not model.co_attention
    assert len([name for name in frozen if ".unused." in name]) == 4 * len(model.connections)


def test_fixed_layers_take_no_gradient_and_change_no_output() -> None:
    kwargs = {"text_connections": (2,), "region_connections": (1,)}
    free, fixed = tiny(**kwargs).eval(), tiny(**kwargs, fixed_text_layers=2, fixed_region_layers=1).eval()
    torch.testing.assert_close(free(**inputs()).text, fixed(**inputs()).text, rtol=0, atol=0)
    sum(value.square().sum() for value in fixed(**inputs()).info.values()).backward()
    missing = [name for name, value in fixed.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []
    frozen = {name.split(".")[0] for name, value in fixed.named_parameters() if value.grad is None}
    assert frozen == {"embeddings", "region_embeddings", "text_layers", "region_layers", "connections"}
    assert fixed.embeddings.words.weight.grad.any()  # the tied head still teaches it
    assert fixed.text_layers[2].mlp.up.weight.grad.any()
    assert not fixed.text_layers[1].mlp.up.weight.requires_grad
    assert not sizes.vilbert_tiny(fixed_text_layers=1).embeddings.words.weight.requires_grad


def test_the_word_head_is_tied() -> None:
    model = tiny().eval()
    before = model(**inputs(), tasks=["mlm"]).mlm_logits
    with torch.no_grad():
        model.embeddings.words.weight[7, ::3] += 1.0  # not all: what the head reads has mean 0
    changed = (model(**inputs(), tasks=["mlm"]).mlm_logits - before).abs().amax((0, 1))
    assert changed[7] > 1e-2
    assert sum("words" in name or "decoder" in name for name, _ in model.heads["mlm"].named_parameters()) == 0


def test_maps_are_weights_and_cost_the_output_nothing() -> None:
    model, batch = tiny().eval(), inputs()
    output = model(**batch, return_attention=True)
    torch.testing.assert_close(output.text, model(**batch).text)
    maps = output.attentions
    assert maps is not None
    assert model(**batch).attentions is None
    assert list(maps)[:3] == [
        "text_layers.0.attention",
        "connections.0.co_attention.first",
        "connections.0.co_attention.second",
    ]
    assert len(maps) == 3 + 2 + 2 * 2
    over_text, over_regions = maps["connections.0.co_attention.first"], maps["connections.0.co_attention.second"]
    assert (over_text.shape, over_regions.shape) == ((B, 2, 3, 5), (B, 2, 5, 3))
    for weights, mask in ((over_text, batch["text_mask"]), (over_regions, batch["region_mask"])):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert not weights.masked_select(~mask[:, None, None, :]).any()


def test_a_folder_keeps_every_bit(tmp_path: Path) -> None:
    model = tiny(task_tokens=5, dynamic_attention=True).attach("vqa", num_answers=9, weight_norm=True).eval()
    model.attach("classifier", num_classes=3, pairs=True)
    again = ViLBERT.from_pretrained(model.save_pretrained(tmp_path))
    tasks = {"task_ids": torch.arange(B)}
    first, second = model(**inputs(), **tasks), again(**inputs(), **tasks)
    assert first.info.keys() == second.info.keys()
    assert all(torch.equal(first[name], second[name]) for name in first.info)
    assert first.classifier_logits.shape == (B // 2, 3)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, value in again.named_parameters() if not value.requires_grad} != set()


def test_compiles_whole_in_training_and_evaluation() -> None:
    model, batch = tiny(dropout=0.0, attention_dropout=0.0, region_dropout=0.0, head_dropout=0.0), inputs()
    model.region_layers[0].dropout = 0.0
    for mode in (False, True):
        model.train(mode)
        for part in model.modules():
            if hasattr(part, "dropout"):
                part.dropout = (0.0, 0.0) if isinstance(part.dropout, tuple) else 0.0
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        ours, plain = compiled(**batch), model(**batch)
        for name in plain.info:
            torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=1e-4)


def test_exports_with_a_dynamic_batch() -> None:
    model = tiny().eval()
    size = torch.export.Dim("batch", min=4, max=64)  # two pairs of rows and more
    shapes = {name: {0: size} for name in inputs()}
    program = torch.export.export(model, (), inputs(), dynamic_shapes=shapes, strict=False)
    for rows in (4, 7):
        batch = inputs(rows, seed=rows)
        torch.testing.assert_close(program.module()(**batch).pair_logits, model(**batch).pair_logits)


def test_boxes_are_shares_and_region_0_is_the_whole_image() -> None:
    boxes = box_shares(torch.tensor([[[20.0, 10.0, 40.0, 60.0], [0.0, 0.0, 80.0, 100.0]]]), width=80.0, height=100.0)
    torch.testing.assert_close(boxes, torch.tensor([[[0.25, 0.1, 0.5, 0.6, 0.125], [0.0, 0.0, 1.0, 1.0, 1.0]]]))
    with pytest.raises(ValueError, match=r"boxes must be \(..., 4\), got \(1, 2, 5\)"):
        box_shares(boxes, 1.0, 1.0)
    features = torch.tensor([[[3.0], [0.0], [6.0], [math.nan]]])  # the second is zeroed, to be predicted
    mask = torch.tensor([[True, True, True, False]])
    plain, full, here = with_whole_image(features, torch.zeros(1, 4, 5), mask)
    assert plain[0, 0].item() == 3.0  # 9 / 3
    assert full[0, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert here.tolist() == [[True, True, True, True, False]]
    left_out = torch.tensor([[True, True, False, False]])  # the first overlaps the second by more than 0.4
    assert with_whole_image(features, torch.zeros(1, 4, 5), mask, left_out)[0][0, 0].item() == 9.0  # the sum keeps it
    nothing = with_whole_image(features, torch.zeros(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool))
    assert nothing[0][0, 0].item() == 0.0
    assert not nothing[2].any()


def test_label_0_is_aligned_and_a_bad_schedule_is_refused() -> None:
    assert ALIGNED == 0
    with pytest.raises(ValueError, match=r"region_connections must rise within 0..1, got \[2\]"):
        schedule(3, 1, [2], [2])
    assert schedule(2, 1, [], []) == [("region", 0), ("text", 0), ("text", 1)]
