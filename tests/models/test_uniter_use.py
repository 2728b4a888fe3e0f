"""UNITER in use: counts, checkpoints in and out, refusals, what is absent, graphs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.reference_uniter import CONFIG, filled, original_state
from torch import Tensor

from polyfuse.models import MODELS
from polyfuse.models.uniter import UNITER, box_features, compact, uniter_base, uniter_large, uniter_tiny

PRETRAINING = ("mlm", "mrfr", "mrc", "itm")
COUNTS = [
    ((), 109_898_752, 335_695_872),
    (PRETRAINING, 112_938_887, 340_524_935),
    (("vqa",), 115_892_281, 344_210_489),
    (("itm", "rank"), 109_901_059, 335_698_947),  # image-text retrieval keeps the match head beside its own
]


@pytest.mark.parametrize(("heads", "base", "large"), COUNTS)
def test_counts_of_the_published_models(heads: tuple[str, ...], base: int, large: int) -> None:
    with torch.device("meta"):
        for build, number in ((MODELS["uniter_base"], base), (MODELS["uniter_large"], large)):
            model = build().attach(*heads)
            assert sum(p.numel() for p in model.parameters()) == number
            assert not list(model.buffers())


def test_builders_take_the_keywords_of_the_class() -> None:
    with torch.device("meta"):
        assert uniter_base(vocab_size=101).embeddings.words.weight.shape == (101, 768)
        assert uniter_large(num_layers=1).config["dim"] == 1024
    assert MODELS["uniter_tiny"] is uniter_tiny


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two pairs of 5 tokens and 3 regions; the second has 3 tokens and 2 regions."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, 97, (2, 5), generator=generator),
        "token_type_ids": torch.randint(0, 2, (2, 5), generator=generator),
        "text_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        "region_features": torch.randn(2, 3, 24, generator=generator).to(dtype),
        "region_boxes": torch.rand(2, 3, 7, generator=generator).to(dtype),
        "region_mask": torch.tensor([[True] * 3, [True] * 2 + [False]]),
        "region_masked": torch.tensor([[False, True, False], [True, False, False]]),
    }


def tiny(*tasks: str, seed: int = 0, **kwargs: Any) -> UNITER:
    torch.manual_seed(seed)
    return uniter_tiny(**kwargs).attach(*tasks).eval()


def all_heads() -> UNITER:
    return tiny("mlm", "mrfr", "mrc", "itm", "wra", "rank", "vqa", "vcr", "re", "nlvr2")


def test_outputs_have_their_names_and_shapes() -> None:
    output = all_heads()(**inputs())
    assert {name: tuple(value.shape) for name, value in output.info.items()} == {
        "sequence": (2, 8, 32),
        "pooled": (2, 32),
        "mlm_logits": (2, 5, 97),
        "region_regression": (2, 3, 24),
        "region_logits": (2, 3, 1601),
        "match_logits": (2, 2),
        "wra_cost": (2, 5, 3),
        "rank_logits": (2, 1),
        "vqa_logits": (2, 3129),
        "vcr_logits": (2, 2),
        "re_logits": (2, 3),
        "nlvr2_logits": (1, 2),
    }
    assert output.logits is None
    assert output.attentions is None


# What is absent


def broken(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """NaN, and ids and types outside of every table, where nothing is."""
    tensors = {name: value.clone() for name, value in tensors.items()}
    tensors["input_ids"][~tensors["text_mask"]] = -(10**6)
    tensors["token_type_ids"][~tensors["text_mask"]] = 10**6
    tensors["region_features"][~tensors["region_mask"]] = math.nan
    tensors["region_boxes"][~tensors["region_mask"]] = math.nan
    # A masked region hides its features, too: the regression must not see its target.
    tensors["region_features"][tensors["region_masked"]] = math.nan
    return tensors


@pytest.mark.parametrize("absent", ["", "text", "regions", "row", "everything"])
def test_absent_content_reaches_neither_output_nor_gradient(absent: str) -> None:
    tensors = inputs()
    if absent in ("text", "row", "everything"):
        tensors["text_mask"][1 if absent == "row" else slice(None)] = False
    if absent in ("regions", "row", "everything"):
        tensors["region_mask"][1 if absent == "row" else slice(None)] = False
    model = all_heads()
    found = []
    for given in (tensors, broken(tensors)):
        for name in ("region_features", "region_boxes"):
            given[name] = given[name].detach().requires_grad_()
        model.zero_grad()
        output = model(**given)
        sum(value.square().mean() for value in output.info.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        found.append((output.info, grads, given["region_features"].grad, given["region_boxes"].grad))
    (info, grads, features, boxes), (info_2, grads_2, features_2, boxes_2) = found
    for name, value in info.items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(info_2[name], value, rtol=0, atol=0)
    for name, gradient in grads.items():
        assert gradient is not None, name
        torch.testing.assert_close(grads_2[name], gradient, rtol=0, atol=0)
    gone = ~tensors["region_mask"]
    assert not features_2[gone].any()
    assert not boxes_2[gone].any()
    assert not features_2[tensors["region_masked"]].any()
    torch.testing.assert_close((features_2, boxes_2), (features, boxes), rtol=0, atol=0)


def test_masks_are_used() -> None:
    model, tensors = all_heads(), inputs()
    output = model(**tensors)
    for name in ("text_mask", "region_mask", "region_masked"):
        changed = model(**{**tensors, name: ~tensors[name]})
        assert not torch.allclose(changed.pooled, output.pooled, atol=1e-5), name


def test_an_absent_modality_equals_none() -> None:
    model, tensors = tiny("itm"), inputs()
    nothing = {**tensors, "region_mask": torch.zeros(2, 3, dtype=torch.bool)}
    alone = model(*(tensors[name] for name in ("input_ids", "token_type_ids", "text_mask")))
    masked = model(**nothing)
    torch.testing.assert_close(masked.pooled, alone.pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(masked.sequence[:, :5], alone.sequence, rtol=0, atol=1e-6)
    regions = {name: value for name, value in tensors.items() if name.startswith("region")}
    alone = model(**regions)
    masked = model(**{**tensors, "text_mask": torch.zeros(2, 5, dtype=torch.bool)})
    torch.testing.assert_close(masked.pooled, alone.pooled, rtol=0, atol=1e-6)  # of the first region
    torch.testing.assert_close(masked.sequence[:, 5:], alone.sequence, rtol=0, atol=1e-6)


def test_padding_changes_nothing() -> None:
    model, tensors = all_heads(), inputs()
    output = model(**tensors, tasks=["mlm", "mrfr", "itm", "vqa"])
    second = {
        name: value[1:, :3] if value.shape[1] == 5 else value[1:, :2]
        for name, value in tensors.items()
        if not name.endswith("_mask")
    }
    alone = model(**second, tasks=["mlm", "mrfr", "itm", "vqa"])
    for name, length in (("mlm_logits", 3), ("region_regression", 2), ("match_logits", None), ("vqa_logits", None)):
        torch.testing.assert_close(output[name][1:, :length], alone[name], rtol=0, atol=1e-6)


def test_heads_without_their_input_are_left_out_unless_named() -> None:
    model, tensors = tiny("mlm", "mrc", "itm", "wra"), inputs()
    text = {name: tensors[name] for name in ("input_ids", "text_mask")}
    assert set(model(**text).info) == {"sequence", "pooled", "mlm_logits", "match_logits"}
    with pytest.raises(ValueError, match="mrc needs regions; wra needs regions, got None"):
        model(**text, tasks=["mrc_kl", "mlm", "wra"])
    regions = {name: value for name, value in tensors.items() if name.startswith("region")}
    assert set(model(**regions).info) == {"sequence", "pooled", "region_logits", "match_logits"}
    with pytest.raises(ValueError, match="wra needs text, got None"):
        model(**regions, tasks=["wra"])
    assert set(model(**tensors, tasks=()).info) == {"sequence", "pooled"}


# Layout


def test_compact_is_the_layout_of_gather_index() -> None:
    stream = torch.tensor([[1, 2, 3, 11, 12], [4, 0, 0, 13, 0]])
    text = torch.tensor([[True, True, True], [True, False, False]])
    regions = torch.tensor([[True, True], [True, False]])
    # Row 1: one token, one region, then what stands at positions 2, 3 and 4 of the stream.
    assert compact(stream, text, regions).tolist() == [[1, 2, 3, 11, 12], [4, 13, 0, 13, 0]]
    assert compact(stream[1:], text[1:], regions[1:]).tolist() == [[4, 13]]
    assert compact(stream[1:], None, regions[1:]).tolist() == [[4, 0, 0, 13]]
    assert compact(stream) is stream
    vectors = torch.randn(2, 5, 3)
    assert torch.equal(compact(vectors, text, regions)[1, :2], vectors[1, [0, 3]])
    with pytest.raises(ValueError, match=r"masks of \[3, 3\] positions do not make the sequence's 5"):
        compact(stream, text, text)


def test_boxes() -> None:
    boxes = torch.tensor([[[10.0, 20.0, 60.0, 100.0]], [[0.0, 0.0, 4.0, 3.0]]])
    sizes = torch.tensor([[100.0, 200.0], [4.0, 3.0]])  # width, height
    expected = torch.tensor([[[0.1, 0.1, 0.6, 0.5, 0.5, 0.4, 0.2]], [[0, 0, 1, 1, 1, 1, 1]]])
    torch.testing.assert_close(box_features(boxes, sizes), expected)
    torch.testing.assert_close(box_features(boxes[0].long(), (100, 200)), expected[0])
    with pytest.raises(ValueError, match=r"x1, y1, x2, y2, got \(1, 5\)"):
        box_features(torch.zeros(1, 5), (2, 2))
    with pytest.raises(ValueError, match=r"must be positive \(width, height\), got \[4.0, 0.0\]"):
        box_features(torch.zeros(1, 4), (4, 0))


# Refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"region_boxes": torch.zeros(2, 3, 5)}, r"region_boxes must have shape \(B, R, 7\).* got \(2, 3, 5\)"),
        ({"region_boxes": None}, r"region_features need region_boxes \(B, R, 7\)"),
        ({"region_features": torch.zeros(2, 3, 23)}, r"must have shape \(B, R, 24\), got \(2, 3, 23\)"),
        ({"region_features": None}, "region_boxes, region_mask, region_masked need region_features, got None"),
        ({"input_ids": None}, "token_type_ids and text_mask need input_ids"),
        ({"input_ids": torch.zeros(5)}, r"input_ids must have shape \(B, L\), got \(5,\)"),
        ({"text_mask": torch.ones(2, 4, dtype=torch.bool)}, r"text_mask must .* = \(2, 5\), got \(2, 4\)"),
        ({"text_mask": torch.ones(2, 5)}, r"text_mask must be bool \(True = present\), got torch.float32"),
        ({"region_masked": torch.ones(2, 3)}, r"region_masked must be bool \(True = masked\), got torch.float32"),
        ({"region_type_ids": torch.ones(3, 2)}, r"region_type_ids must .* = \(2, 3\), got \(3, 2\)"),
        ({"tasks": ["vqa"]}, r"no head attached for \['vqa'\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny()(**{**inputs(), **change})


def test_other_refusals() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="give input_ids, region_features or both, got neither"):
        model()
    tensors = inputs()
    with pytest.raises(ValueError, match="texts and images must be as many, got 1 and 2"):
        model(input_ids=tensors["input_ids"][:1], **{k: v for k, v in tensors.items() if k.startswith("region")})
    with pytest.raises(ValueError, match="at most 19 tokens, got 20"):
        model(torch.ones(1, 20, dtype=torch.long))
    with pytest.raises(ValueError, match=r"type_vocab_size must be at least 2 .*, got 1"):
        uniter_tiny(type_vocab_size=1)
    with pytest.raises(ValueError, match="UNITER has no head for 'gqa'; it has: itm, mlm"):
        model.attach("gqa")
    with pytest.raises(ValueError, match="num_layers of the re head must be 1 or 2, got 3"):
        model.attach("re", num_layers=3)
    with pytest.raises(ValueError, match=r"variant of the nlvr2 head must be one of .*, got 'pair'"):
        model.attach("nlvr2", variant="pair")
    with pytest.raises(ValueError, match=r"even batch \(rows 2i and 2i \+ 1 are one example\), got 1"):
        model.attach("nlvr2")(tensors["input_ids"][:1])


# Checkpoints

EVERY_HEAD = [PRETRAINING, ("itm", "rank"), ("vqa",), ("vcr",), ("re",), ("re2",), ("paired",), ("paired_attention",)]


@pytest.mark.parametrize("heads", [*EVERY_HEAD, ("triplet",), ()], ids=str)
def test_original_layout_round_trip(heads: tuple[str, ...]) -> None:
    state = original_state(heads=heads)
    back = UNITER.from_original(state, CONFIG).to_original()
    assert set(back) == set(state)
    for name, value in state.items():
        assert torch.equal(back[name], value), name
    assert back["uniter.img_embeddings.mask_embedding.weight"][0].any()  # kept, never used


def _old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms as gamma and beta, from a parallel run."""
    renamed = {}
    for name, value in state.items():
        is_norm = "LayerNorm" in name or "layer_norm" in name
        new = name.replace(".weight", ".gamma").replace(".bias", ".beta") if is_norm else name
        renamed[f"module.{new}"] = value
    return renamed


def _mmf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "uniter."
        + name.replace("uniter.embeddings.", "uniter.text_embeddings.").replace(
            "img_embeddings.LayerNorm", "img_embeddings.final_layer_norm"
        ): value
        for name, value in state.items()
    }
    return {**renamed, "uniter.uniter.text_embeddings.position_ids": torch.arange(11)[None]}


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("uniter."): value for name, value in state.items()}


def _mmf_inner(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("uniter.uniter."): value for name, value in _mmf(state).items()}


@pytest.mark.parametrize(
    ("rename", "heads"), [(_old, PRETRAINING), (_mmf, ()), (_bare, ()), (_mmf_inner, ()), (_bare, ("vqa",))]
)
def test_other_names_of_the_same_tensors(rename: Any, heads: tuple[str, ...]) -> None:
    state = original_state(heads=heads)
    model = UNITER.from_original(rename(state), CONFIG)
    back = model.to_original()
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_mmf_layout_is_written() -> None:
    state = original_state()
    model = UNITER.from_original(state, CONFIG, layout="uniter")
    written = model.to_original("mmf")
    assert set(written) == set(_mmf(state)) - {"uniter.uniter.text_embeddings.position_ids"}
    assert all(torch.equal(_mmf(state)[name], value) for name, value in written.items())
    with pytest.raises(ValueError, match=r"the mmf layout has no place for these heads, got \['itm'\]"):
        model.attach("itm").to_original("mmf")
    with pytest.raises(ValueError, match="layout must be one of uniter, mmf, got 'hf'"):
        model.to_original("hf")
    with pytest.raises(ValueError, match="layout must be one of uniter, mmf, got 'hf'"):
        UNITER.from_original(state, CONFIG, layout="hf")


def test_checkpoints_that_do_not_fit_are_refused_with_a_list() -> None:
    state = original_state(heads=PRETRAINING)
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    state["feat_regress.weight"] = state["feat_regress.weight"] + 1
    state["caption_output.weight"] = torch.zeros(2)
    state["uniter.pooler.dense.bias"] = torch.zeros(3)
    del state["region_classifier.net.2.bias"]
    with pytest.raises(ValueError, match="does not fit UNITER") as caught:
        UNITER.from_original(state, CONFIG)
    for said in (
        "cls.predictions.decoder.weight differs from uniter.embeddings.word_embeddings.weight",
        "feat_regress.weight differs from uniter.img_embeddings.img_linear.weight",
        "cannot map caption_output.weight",
        "uniter.pooler.dense.bias is (3,), expected (10,)",
        "missing region_classifier.net.2.bias",
    ):
        assert said in str(caught.value)


def test_wrong_settings_are_refused() -> None:
    state = original_state()
    with pytest.raises(ValueError, match=r"word_embeddings.weight is \(23, 10\), expected \(28996, 10\)"):
        UNITER.from_original(state, {**CONFIG, "vocab_size": 28996})
    with pytest.raises(ValueError, match=r"cannot map uniter.encoder.layer.1"):
        UNITER.from_original(state, {**CONFIG, "num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"missing uniter.encoder.layer.2"):
        UNITER.from_original(state, {**CONFIG, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match="needs its config"):
        UNITER.from_original(state)


def test_words_appended_to_the_table_are_read() -> None:
    """The authors' VCR code appends 81 words to the table, and leaves the config as it was."""
    state = original_state(heads=("mlm",))
    number, dim = state["uniter.embeddings.word_embeddings.weight"].shape
    grown = torch.cat([state["uniter.embeddings.word_embeddings.weight"], torch.ones(3, dim, dtype=torch.float64)])
    state["uniter.embeddings.word_embeddings.weight"] = state["cls.predictions.decoder.weight"] = grown
    state["cls.predictions.bias"] = torch.cat([state["cls.predictions.bias"], torch.ones(3, dtype=torch.float64)])
    assert CONFIG["vocab_size"] == number
    model = UNITER.from_original(state, CONFIG)
    assert model.config["vocab_size"] == number + 3
    assert model(torch.tensor([[number + 2, 1]])).mlm_logits.shape == (1, 2, number + 3)
    assert all(torch.equal(value, state[key]) for key, value in model.to_original().items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_training_run_in_memory_and_half_precision(wrapper: str) -> None:
    state = {key: value.half() for key, value in original_state(heads=("itm",)).items()}
    rounded = {key: value.float() for key, value in state.items()}
    run = {wrapper: {f"module.{key}": value for key, value in state.items()}, "global_step": 3}
    model = UNITER.from_original(run, CONFIG)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(value, rounded[key]) for key, value in model.to_original().items())
    words = torch.tensor([[3, 1, 2]])
    assert torch.equal(model(words).match_logits, UNITER.from_original(rounded, CONFIG)(words).match_logits)


def test_original_files(tmp_path: Path) -> None:
    import json

    state = original_state(heads=("itm",))
    torch.save(state, tmp_path / "uniter.pt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = UNITER.from_original(tmp_path / "uniter.pt", tmp_path / "config.json")
    assert torch.equal(model.heads["itm"].weight, state["itm_output.weight"])
    assert not model.training


def test_saved_and_read_bit_for_bit(tmp_path: Path) -> None:
    model = all_heads().attach("nlvr2", variant="paired_attention").attach("vqa", num_answers=7)
    model.add_token_types(1)
    again = UNITER.from_pretrained(model.save_pretrained(tmp_path))
    assert again.config == model.config
    assert again.head_config == model.head_config
    output, output_2 = model(**inputs()), again(**inputs())
    assert set(output.info) == set(output_2.info)
    for name, value in output.info.items():
        assert torch.equal(output_2[name], value), name


def test_new_token_types_start_as_copies() -> None:
    model = tiny("itm")
    table = model.embeddings.types.weight.detach().clone()
    before = model(**inputs()).pooled
    model.add_token_types(0, 1)
    assert torch.equal(model.embeddings.types.weight, table[[0, 1, 0, 1]])
    assert model.embeddings.types.weight.requires_grad
    assert model.config["type_vocab_size"] == 4
    found = model(**inputs(), region_type_ids=torch.full((2, 3), 3)).pooled
    torch.testing.assert_close(found, before, rtol=0, atol=0)


# Training and graphs


@pytest.mark.parametrize("variant", ["paired", "triplet", "paired_attention"])
def test_every_parameter_trains(variant: str) -> None:
    model = all_heads().attach("nlvr2", variant=variant).attach("re", num_layers=2).double()
    output = model(**inputs(dtype=torch.float64))
    weights = {name: filled(name, *value.shape) for name, value in output.info.items()}
    sum((value * weights[name]).sum() for name, value in output.info.items()).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name
    assert not model.regions.masked.weight.grad[0].any()


def test_masked_row_stays_in_the_graph_of_a_batch_without_masked_regions() -> None:
    model = tiny("itm").train()
    tensors = inputs()
    del tensors["region_masked"]
    model(**tensors).match_logits.sum().backward()
    gradient = model.regions.masked.weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_dropout_only_in_training() -> None:
    model, tensors = tiny(), inputs()
    assert torch.equal(model(**tensors).pooled, model(**tensors).pooled)
    model.train()
    assert not torch.equal(model(**tensors).pooled, model(**tensors).pooled)


def test_attention_maps() -> None:
    model, tensors = tiny("itm"), inputs()
    output = model(**tensors, return_attention=True)
    assert output.attentions is not None
    assert list(output.attentions) == ["layers.0.attention", "layers.1.attention"]
    mask = torch.cat([tensors["text_mask"], tensors["region_mask"]], dim=1)
    for weights in output.attentions.values():
        assert weights.shape == (2, 4, 8, 8)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 8))
        assert not weights.masked_select(~mask[:, None, None]).any()
    assert torch.equal(output.match_logits, model(**tensors).match_logits)


def test_compiles_and_exports() -> None:
    model, tensors = all_heads(), inputs()
    expected = model(**tensors).info
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**tensors).info
    program = torch.export.export(model, (), kwargs=tensors).module()
    exported = program(**tensors).info
    for name, value in expected.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(exported[name], value, rtol=0, atol=1e-6)
    other = inputs(1)
    torch.testing.assert_close(program(**other).pooled, model(**other).pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    model = all_heads().attach("nlvr2", variant="paired_attention").to(dtype)
    for name, value in model(**inputs(dtype=dtype)).info.items():
        assert value.isfinite().all(), name


def test_skipping_padding_changes_nothing() -> None:
    model, tensors = all_heads().attach("nlvr2", variant="paired_attention"), inputs()
    padded, packed = model(**tensors), model(**tensors, skip_padding=True)
    text, regions = tensors["text_mask"], tensors["region_mask"]
    here = {"sequence": torch.cat([text, regions], dim=1), "mlm_logits": text}
    here |= dict.fromkeys(("region_regression", "region_logits"), regions)
    for name, value in padded.info.items():
        keep = here.get(name, torch.ones(len(value), dtype=torch.bool))
        torch.testing.assert_close(packed[name][keep], value[keep], rtol=0, atol=1e-5)
    assert not packed.sequence[~here["sequence"]].any()
    assert padded.sequence[~here["sequence"]].any()


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "uniter.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)  # noqa: S102 (our own page)
    assert names["states"].shape == (1, 5, 32)
    assert names["match"].shape == (1,)
    for number in (number for _, *pair in COUNTS for number in pair):
        assert f"{number:,}" in page
