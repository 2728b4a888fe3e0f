"""MMBT: the same computation built from transformers' BertModel, names both ways, counts, missing inputs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.models import MODELS
from polyfuse.models.mmbt import GRIDS, MMBT, mmbt_base, mmbt_tiny

V, D, CLASSES, B = 53, 12, 7, 2
SIZES: dict[str, Any] = {
    "vocab_size": V, "dim": D, "num_layers": 2, "num_heads": 3, "hidden_dim": 20, "max_length": 17,
    "depths": (1, 1, 2, 1), "resnet_width": 4, "cls_id": 2, "sep_id": 3,
}  # fmt: skip


def filled(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(noise.abs() * 0.3 + 0.7 if value.ndim == 1 and not name.endswith("bias") else noise * 0.3)
    return model


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    images = torch.randn(B, 3, 129, 161, generator=torch.Generator().manual_seed(7), dtype=dtype)
    ids = torch.tensor([[2, 31, 44, 9, 52, 3], [2, 17, 3, 0, 0, 0]])
    return {"images": images, "input_ids": ids, "text_mask": ids != 0}


def pooled_by_hand(last: Tensor, grid: tuple[int, int], pool: str) -> Tensor:
    """``(B, C, H, W)`` to ``(B, N, C)``, bin by bin."""
    height, width = last.shape[2:]
    bins = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * height // grid[0], math.ceil((i + 1) * height / grid[0]))
            columns = slice(j * width // grid[1], math.ceil((j + 1) * width / grid[1]))
            part = last[:, :, rows, columns].flatten(2)
            bins.append(part.mean(2) if pool == "avg" else part.amax(2))
    return torch.stack(bins, 1)


def bert_twin(model: MMBT) -> nn.Module:
    """Transformers' BertModel with the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=17,
    )  # fmt: skip
    bert = transformers.BertModel(config).double().eval()
    start = "mmbt.transformer."
    state = {k.removeprefix(start): v for k, v in model.to_original("hf").items() if k.startswith(start)}
    assert not bert.load_state_dict(state, strict=False).missing_keys
    return bert


@pytest.mark.parametrize("number", sorted(GRIDS))
def test_bert_over_image_and_text(number: int) -> None:
    pool = "max" if number in (2, 9) else "avg"
    model = filled(MMBT(**SIZES, num_image_tokens=number, pool=pool).double()).eval()
    given, bert = inputs(), bert_twin(model)
    ids, mask = given["input_ids"], given["text_mask"]
    leaves = [given["images"].clone().requires_grad_() for _ in range(2)]
    vectors = pooled_by_hand(model.resnet.feature_maps(leaves[1])[-1], GRIDS[number], pool)
    image = vectors @ model.image_proj.weight.T + model.image_proj.bias
    words = bert.embeddings.word_embeddings
    ends = [words(torch.full((B, 1), token)) for token in (2, 3)]
    row = torch.cat([ends[0], image, ends[1], words(ids[:, 1:].masked_fill(~mask[:, 1:], 0))], 1)
    front, behind = number + 2, ids.shape[1] - 1
    expected = bert(
        inputs_embeds=row,
        attention_mask=torch.cat([torch.ones(B, front, dtype=torch.long), mask[:, 1:].long()], 1),
        token_type_ids=torch.tensor([0] * front + [1] * behind).expand(B, -1),
        position_ids=torch.tensor([*range(front), *range(behind)]).expand(B, -1),
    )
    out = model(**{**given, "images": leaves[0]})
    kept = out.sequence_mask
    torch.testing.assert_close(out.sequence[kept], expected.last_hidden_state[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooled, expected.pooler_output, rtol=0, atol=1e-5)
    weights = torch.randn(expected.last_hidden_state.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = weights * kept[..., None]
    ((out.sequence * weights).sum() + out.pooled.sum()).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    ((expected.last_hidden_state * weights).sum() + expected.pooler_output.sum()).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-7, atol=1e-5)
    layer, table = bert.encoder.layer[1], bert.embeddings
    stacked = torch.cat([getattr(layer.attention.self, name).weight.grad for name in ("query", "key", "value")])
    pairs = {
        "layers.1.attention.qkv.weight": stacked,
        "embeddings.positions.weight": table.position_embeddings.weight.grad,
        "embeddings.types.weight": table.token_type_embeddings.weight.grad,
        "embeddings.norm.weight": table.LayerNorm.weight.grad,
        "pooler.dense.weight": bert.pooler.dense.weight.grad,
    }
    for name, gradient in pairs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-7, atol=1e-5)
    # Row 0, the padding id, gets no gradient in either.
    torch.testing.assert_close(ours["embeddings.words.weight"], words.weight.grad, rtol=1e-7, atol=1e-5)


def test_heads() -> None:
    model = filled(MMBT(**SIZES, dropout=0.0).double().attach("classification", num_classes=CLASSES))
    model.attach("mlm", "alignment").eval()
    given = inputs()
    out = model(**given)
    head = model.heads["classification"].classifier
    torch.testing.assert_close(out.classification_logits, out.pooled @ head.weight.T + head.bias)
    assert out.mlm_logits.shape == (B, 6, V)
    assert out.alignment_logits.shape == (B, 2)
    torch.testing.assert_close(out.text[:, 1:], out.sequence[:, 3:])
    torch.testing.assert_close(out.text[:, 0], out.sequence[:, 0])
    assert set(model(**given, tasks=["mlm"]).info) == {
        "sequence", "sequence_mask", "image", "text", "pooled", "mlm_logits",
    }  # fmt: skip
    model.attach("classification", num_classes=CLASSES, transform=True)
    part = model.heads["classification"].classifier
    hidden = nn.functional.gelu(out.pooled @ part.dense.weight.T + part.dense.bias)
    hidden = nn.functional.layer_norm(hidden, (D,), part.norm.weight, part.norm.bias, 1e-12)
    expected = hidden @ part.decoder.weight.T + part.decoder.bias
    torch.testing.assert_close(model.double()(**given).classification_logits, expected.double())


@pytest.mark.parametrize("layout", ["mmf", "hf"])
@pytest.mark.parametrize("heads", [{"classification": {"num_classes": 7}}, {"mlm": {}, "alignment": {}}])
def test_original_names_round_trip(layout: str, heads: dict[str, dict[str, Any]]) -> None:
    types = {"image_type": 1, "text_type": 0} if layout == "mmf" else {}
    model = MMBT(**SIZES, **types, num_image_tokens=4)
    for task, kwargs in heads.items():
        model.attach(task, **kwargs, **({"transform": layout == "mmf"} if kwargs else {}))
    state = filled(model).eval().to_original(layout)
    start = {"mmf": "model.bert.mmbt.", "hf": "mmbt."}[layout]
    expected = {"modal_encoder.encoder.model.4.0.conv1.weight", "modal_encoder.encoder.model.1.running_mean"}
    expected |= {
        "modal_encoder.proj_embeddings.bias",
        "modal_encoder.LayerNorm.weight",
        "transformer.pooler.dense.bias",
    }
    assert {start + key for key in expected} <= set(state)
    shared = f"{start}modal_encoder.word_embeddings.weight"
    assert torch.equal(state[shared], state[f"{start}transformer.embeddings.word_embeddings.weight"])
    settings = {"num_attention_heads": 3, "num_image_embeds": 4, "cls_id": 2, "sep_id": 3}
    given = {f"module.{k}": v for k, v in state.items()}
    loaded = MMBT.from_original(
        given | {f"module.{start}transformer.embeddings.position_ids": torch.zeros(1)}, settings
    )
    assert loaded.config == model.config
    assert loaded.head_config == model.head_config
    back = loaded.to_original(layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    batch = inputs(torch.float32)
    for name, value in model(**batch).info.items():
        assert torch.equal(loaded(**batch)[name], value)


def test_old_mmf_names_and_misfits() -> None:
    state = filled(mmbt_tiny(image_type=1, text_type=0).attach("classification", transform=True)).to_original("mmf")
    old = {key.replace("model.", "base.", 1): value for key, value in state.items()}
    settings = {"num_attention_heads": 2, "num_output_features": 3}
    assert MMBT.from_original(old, settings).to_original("mmf").keys() == state.keys()
    shared = "model.bert.mmbt.modal_encoder.LayerNorm.bias"
    with pytest.raises(ValueError, match=r"modal_encoder\.LayerNorm\.bias differs"):
        MMBT.from_original({**state, shared: state[shared] + 1}, settings)
    with pytest.raises(ValueError, match=r"cannot map model\.extra"):
        MMBT.from_original({**state, "model.extra": torch.zeros(1)}, settings)
    with pytest.raises(
        ValueError, match=r"missing model\.bert\.mmbt\.transformer\.embeddings\.word_embeddings\.weight"
    ):
        MMBT.from_original({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="layout must be one of mmf, hf, got 'x'"):
        mmbt_tiny().to_original("x")


def test_published_size() -> None:
    with torch.device("meta"):
        model = mmbt_base()
        count = sum(p.numel() for p in model.parameters())
        with_head = sum(p.numel() for p in model.attach("classification", num_classes=2).parameters())
    assert count == 109_482_240 + (60_192_808 - 2_049_000) + 2048 * 768 + 768 == 169_199_680
    assert with_head == count + 2 * 768 + 2


def test_registered() -> None:
    for name in ("mmbt_base", "mmbt_tiny", "mmbert_medical", "mmbert_tiny"):
        with torch.device("meta"):
            assert MODELS[name](dtype=torch.bfloat16).embeddings.words.weight.dtype == torch.bfloat16


def test_absent_content_reaches_nothing() -> None:
    model = filled(MMBT(**SIZES, norm_mode="eval", dropout=0.0, attention_dropout=0.0).double())
    model.attach("classification", num_classes=CLASSES).attach("mlm").train()
    present = torch.tensor([[False, True], [True, False]])
    clean, broken = inputs(), inputs()
    broken["images"][0] = math.nan
    broken["input_ids"][1] = 51
    types = [torch.zeros(B, 6, dtype=torch.long), torch.tensor([[0] * 6, [1] * 6])]
    outs = [model(**g, present=present, token_type_ids=t) for g, t in zip((clean, broken), types, strict=True)]
    for name in outs[0].info:
        torch.testing.assert_close(outs[0][name], outs[1][name])
    assert not torch.allclose(outs[0].pooled, model(**clean).pooled)
    leaf = broken["images"].requires_grad_()
    out = model(**{**broken, "images": leaf}, present=present)
    (out.classification_logits.sum() + out.mlm_logits.sum()).backward()
    assert not leaf.grad[0].any()
    assert leaf.grad[1].any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_absence_equals_leaving_out() -> None:
    model = filled(MMBT(**SIZES).double()).eval()
    given = inputs()
    no_image, no_text = torch.tensor([[False, True]] * B), torch.tensor([[True, False]] * B)
    without = {key: value for key, value in given.items() if key != "images"}
    torch.testing.assert_close(model(**given, present=no_image).pooled, model(**without).pooled)
    torch.testing.assert_close(model(**given, present=no_text).pooled, model(given["images"]).pooled)
    nothing = model(**given, present=torch.zeros(B, 2, dtype=torch.bool)).pooled
    assert torch.isfinite(nothing).all()
    torch.testing.assert_close(nothing[0], nothing[1])
    vectors = model.image_vectors(given["images"])
    torch.testing.assert_close(model(image_features=vectors, **without).pooled, model(**given).pooled)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"image_features": torch.zeros(1, 3, 9)}, r"\(B, 3, 128\), got \(1, 3, 9\)"),
        ({"images": torch.zeros(1, 3, 33, 33), "image_features": torch.zeros(1, 3, 128)}, "not both"),
        ({"input_ids": torch.ones(1, 40, dtype=torch.long)}, "at most 32 tokens, got 39"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mmbt_tiny()(**call)


@pytest.mark.parametrize(("kwargs", "said"), [({"num_image_tokens": 10}, "got 10"), ({"pool": "sum"}, "'sum'")])
def test_wrong_arguments_are_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mmbt_tiny(**kwargs)


def test_every_parameter_trains() -> None:
    model = mmbt_tiny().attach("classification", transform=True).attach("mlm", "alignment").train()
    out = model(**inputs(torch.float32))
    sum(out[f"{task}_logits"].square().sum() for task in model.heads).backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking


def test_saved_and_read_again(tmp_path: Path) -> None:
    model = filled(mmbt_tiny().attach("classification", num_classes=CLASSES, transform=True)).eval()
    again = MMBT.from_pretrained(model.save_pretrained(tmp_path))
    given = inputs(torch.float32)
    assert torch.equal(again(**given).classification_logits, model(**given).classification_logits)


def test_attention_maps() -> None:
    out = mmbt_tiny().eval()(**inputs(torch.float32), return_attention=True)
    assert list(out.attentions) == ["layers.0.attention", "layers.1.attention"]
    for weights in out.attentions.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, 2, 10))
        assert not weights[1, :, :, 7:].any()


def test_compiles_and_exports() -> None:
    model = mmbt_tiny().attach("classification", num_classes=CLASSES).eval()
    given = inputs(torch.float32)
    present = torch.tensor([[True, True], [True, False]])
    expected = model(**given, present=present).classification_logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**given, present=present).classification_logits, expected)
    program = torch.export.export(model, (), {**given, "present": present})
    torch.testing.assert_close(program.module()(**given, present=present).info["classification_logits"], expected)
