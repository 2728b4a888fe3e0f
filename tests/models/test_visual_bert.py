"""VisualBERT against transformers: outputs, gradients, heads, layouts; one modality alone, absent ones, padding."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.models import MODELS, VisualBert
from polyfuse.models.visual_bert import visual_bert_base, visual_bert_tiny, visual_bert_vcr

B, L, R, V, D, F = 5, 11, 3, 50, 32, 12
TEXT = torch.arange(L) < torch.tensor([11, 3, 4, 7, 5])[:, None]
REGIONS = torch.arange(R) < torch.tensor([3, 1, 2, 3, 1])[:, None]
CONFIG = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "visual_embedding_dim": F,
}


def theirs(kind: str = "VisualBertModel", **more: Any) -> tuple[Any, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VisualBertConfig(**{**CONFIG, **more}, attn_implementation="eager")
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval(), {**config.to_dict(), "architectures": [kind]}


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(2, V, (B, L)).masked_fill(~TEXT, 0),
        "token_type_ids": torch.randint(0, 2, (B, L)),
        "region_features": torch.randn(B, R, F, dtype=torch.float64),
    }


def as_theirs(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "input_ids": x["input_ids"],
        "token_type_ids": x["token_type_ids"],
        "attention_mask": TEXT.long(),
        # They project what stands at absent regions: nobody reads it, but states there differ from ours.
        "visual_embeds": x["region_features"] * REGIONS[..., None],
        "visual_attention_mask": REGIONS.long(),
    }


BOTH = torch.cat((TEXT, REGIONS), dim=1)


def assert_same_gradients(ours: VisualBert, other: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            parameter.copy_(parameter.grad)
    written = ours.to_original()
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            written[name], parameter.grad, atol=1e-10, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_counts() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in make().parameters())
            for make in (visual_bert_base, visual_bert_vcr, visual_bert_tiny)
        ]
        assert MODELS["visual_bert_nlvr2"](num_layers=1).config["region_dim"] == 1024
    assert counts == [111_450_624, 110_270_976, 19_296]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_outputs_gradients_and_maps_equal_transformers(aligned: bool, typed: bool) -> None:
    other, config = theirs()
    ours = VisualBert.from_original(other.state_dict(), config)
    x, more, extra = inputs(), {}, {}
    if typed:
        more["region_type_ids"] = extra["visual_token_type_ids"] = torch.randint(0, 2, (B, R))
    if aligned:
        words = torch.randint(0, L, (B, R, 2))
        words[:, :, 1] = torch.where(torch.rand(B, R) < 0.5, -1, words[:, :, 1])
        more["alignment"] = extra["image_text_alignment"] = words
    out = ours(**x, text_mask=TEXT, region_mask=REGIONS, return_attention=True, **more)
    expected = other(**as_theirs(x), **extra, output_attentions=True)
    torch.testing.assert_close(out.sequence, expected.last_hidden_state, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(out.pooled, expected.pooler_output, atol=1e-10, rtol=1e-10)
    assert torch.equal(torch.cat((out.text, out.regions), dim=1), out.sequence)
    assert out.attentions is not None
    for mine, wanted in zip(out.attentions.values(), expected.attentions, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)
    torch.manual_seed(2)
    upstream = torch.randn_like(out.sequence)
    ((out.sequence * upstream)[BOTH].sum() + out.pooled.square().sum()).backward()
    ((expected.last_hidden_state * upstream)[BOTH].sum() + expected.pooler_output.square().sum()).backward()
    assert_same_gradients(ours, other)


@pytest.mark.parametrize(
    ("kind", "labels", "heads"),
    [
        ("VisualBertForPreTraining", 2, ["mlm", "pair"]),
        ("VisualBertForQuestionAnswering", 13, ["vqa"]),
        ("VisualBertForVisualReasoning", 2, ["nlvr2"]),
        ("VisualBertForMultipleChoice", 2, ["vcr"]),
    ],
)
def test_heads_and_their_layouts_equal_transformers(kind: str, labels: int, heads: list[str]) -> None:
    other, config = theirs(kind, num_labels=labels)
    ours = VisualBert.from_original(other.state_dict(), config)
    assert list(ours.heads) == heads
    x = inputs()
    out = ours(**x, text_mask=TEXT, region_mask=REGIONS)
    if heads == ["vcr"]:  # their rows are (question, answers)
        expected = other(**{key: value[:, None] for key, value in as_theirs(x).items()})
    else:
        expected = other(**as_theirs(x))
    if heads == ["mlm", "pair"]:
        pairs = [
            (out.mlm_logits, expected.prediction_logits[:, :L]),
            (out.pair_logits, expected.seq_relationship_logits),
        ]
    else:
        pairs = [(out[f"{heads[0]}_logits"], expected.logits)]
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)
    sum(mine.square().sum() for mine, _ in pairs).backward()  # type: ignore[union-attr]
    sum(wanted.square().sum() for _, wanted in pairs).backward()
    if heads == ["vqa"]:  # the pooled vector is not used
        for module in (ours.pooler, other.visual_bert.pooler):
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    for key, value in ours.to_original().items():
        assert torch.equal(value, state.pop(key)), key
    assert not state
    assert_same_gradients(ours, other)


def test_the_classifier_is_named_by_its_size_where_the_config_does_not_say() -> None:
    for kind, labels, head in (
        ("VisualBertForQuestionAnswering", 13, "vqa"),
        ("VisualBertForVisualReasoning", 2, "nlvr2"),
        ("VisualBertForMultipleChoice", 1, "vcr"),
    ):
        other, config = theirs(kind, num_labels=labels)
        del config["architectures"]
        assert list(VisualBert.from_original(other.state_dict(), config).heads) == [head]


def tiny(*heads: str) -> VisualBert:
    torch.manual_seed(3)
    model = visual_bert_tiny().attach(*heads).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("absent", ["text", "image"])
def test_masking_a_modality_is_leaving_it_out(absent: str) -> None:
    model, x = tiny("vqa", "nlvr2"), inputs()
    text = {key: x[key] for key in ("input_ids", "token_type_ids")}
    if absent == "text":
        masked = model(**x, text_mask=torch.zeros_like(TEXT), region_mask=REGIONS)
        alone = model(region_features=x["region_features"], region_mask=REGIONS)
        torch.testing.assert_close(masked.regions[REGIONS], alone.regions[REGIONS])
        assert alone.text.shape == (B, 0, D)
    else:
        masked = model(**x, text_mask=TEXT, region_mask=torch.zeros_like(REGIONS))
        alone = model(**text, text_mask=TEXT)
        torch.testing.assert_close(masked.text[TEXT], alone.text[TEXT])
        assert alone.regions.shape == (B, 0, D)
    for name in ("pooled", "vqa_logits", "nlvr2_logits"):
        torch.testing.assert_close(masked[name], alone[name])


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_absent_reaches_neither_output_nor_gradient(skip: bool) -> None:
    model, x = tiny("mlm", "pair"), inputs()
    text_mask, region_mask = TEXT.clone(), REGIONS.clone()
    text_mask[1], region_mask[2] = False, False
    text_mask[4], region_mask[4] = False, False  # nothing at all
    x["region_features"] = x["region_features"].masked_fill(~region_mask[..., None], math.nan).requires_grad_()
    out = model(**x, text_mask=text_mask, region_mask=region_mask, skip_padding=skip)
    others = {**x, "input_ids": torch.where(text_mask, x["input_ids"], 7)}
    again = model(**others, text_mask=text_mask, region_mask=region_mask)
    for name, mask in (("text", text_mask), ("regions", region_mask), ("mlm_logits", text_mask)):
        torch.testing.assert_close(out[name][mask], again[name][mask])
    for name in ("pooled", "pair_logits"):
        torch.testing.assert_close(out[name], again[name])
    assert all(value.isfinite().all() for value in out.info.values())
    assert not out.sequence[4].any()
    total = out.mlm_logits[text_mask].square().sum() + out.pooled.square().sum() + out.pair_logits.square().sum()
    total.backward()
    gradient = x["region_features"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert not gradient[~region_mask].any()
    assert gradient[region_mask].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_skipping_padding_changes_nothing() -> None:
    model, x = tiny("mlm", "vqa"), inputs()
    found = []
    for skip in (False, True):
        out = model(**x, text_mask=TEXT, region_mask=REGIONS, skip_padding=skip)
        total = out.mlm_logits[TEXT].square().sum() + out.pooled.square().sum() + out.vqa_logits.square().sum()
        grads = torch.autograd.grad(total, list(model.parameters()))
        found.append((out.sequence[BOTH], out.pooled, out.vqa_logits, *grads))
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-9, rtol=1e-9)


def test_folder_round_trip_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = visual_bert_tiny().attach("vqa", num_classes=7).eval()
    read = VisualBert.from_pretrained(model.save_pretrained(tmp_path))
    assert read.head_config == {"vqa": {"num_classes": 7}}
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key


def test_a_model_that_was_not_read_loads_into_transformers() -> None:
    for kind, heads in (("VisualBertModel", ()), ("VisualBertForPreTraining", ("mlm", "pair"))):
        other, _ = theirs(kind)
        torch.manual_seed(0)
        other.float().load_state_dict(visual_bert_tiny().attach(*heads).to_original(), strict=True)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole_and_exports(training: bool) -> None:
    torch.manual_seed(0)
    model = visual_bert_tiny(dropout=0.0, attention_dropout=0.0).attach("vqa").train(training)
    x = inputs()
    x["region_features"] = x["region_features"].float()
    arguments = (x["input_ids"], x["token_type_ids"], TEXT, x["region_features"], REGIONS)
    expected = model(*arguments).vqa_logits
    compiled = torch.compile(lambda *y: model(*y, skip_padding=True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments).vqa_logits, expected)
    if not training:
        torch.testing.assert_close(torch.export.export(model, arguments).module()(*arguments).vqa_logits, expected)


def test_visual_tables_start_as_the_textual_ones() -> None:
    model = visual_bert_tiny()
    assert torch.equal(model.region_types.weight, model.embeddings.types.weight)
    assert torch.equal(model.region_positions.weight, model.embeddings.positions.weight)
    assert model.region_types.weight.data_ptr() != model.embeddings.types.weight.data_ptr()


def test_refusals() -> None:
    other, config = theirs()
    state = other.state_dict()
    with pytest.raises(ValueError, match="needs input_ids, region_features, or both"):
        visual_bert_tiny()()
    with pytest.raises(ValueError, match="a VisualBERT checkpoint needs its config"):
        VisualBert.from_original(state)
    with pytest.raises(ValueError, match="bypass_transformer must be False, got True"):
        VisualBert.from_original(state, {**config, "bypass_transformer": True})
    with pytest.raises(ValueError, match=r"room for one kind of head, got \['vqa', 'nlvr2'\]"):
        visual_bert_tiny().attach("vqa", "nlvr2").to_original()
    with pytest.raises(ValueError, match="the head 'pair' reads the pooled vector"):
        visual_bert_tiny(pooler=False).attach("pair")
    with pytest.raises(ValueError, match=r"cannot map attention\.query\.weight"):
        VisualBert.from_original({**state, "attention.query.weight": torch.zeros(D, D)}, config)
    with pytest.raises(ValueError, match="no head attached for \\['vqa'\\]"):
        visual_bert_tiny()(torch.ones(1, 3, dtype=torch.long), tasks=["vqa"])
