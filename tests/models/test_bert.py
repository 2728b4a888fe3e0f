"""BERT against transformers: outputs, gradients, every layout both ways, real weights; masks, maps, padding skipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.data.fetch import path_of
from polyfuse.models import MODELS, Bert
from polyfuse.models.bert import bert_base, bert_tiny
from polyfuse.models.bert_original import gamma_beta_renamed, gamma_beta_written
from polyfuse.models.bert_parts import BertEmbeddings, TransformHead

B, L, V, D = 5, 11, 50, 32
MASK = torch.arange(L) < torch.tensor([11, 3, 1, 7, 5])[:, None]
CONFIG = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def randomised(model: nn.Module) -> Any:
    """Biases and norms that a wrong wiring shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def theirs(kind: str = "BertModel", **more: Any) -> tuple[Any, dict[str, Any]]:
    """A model of transformers with random weights, and its config."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**CONFIG, **more}, attn_implementation="eager")
    return randomised(getattr(transformers, kind)(config)), config.to_dict()


def texts() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, V, (B, L)).masked_fill(~MASK, 0)
    return {"input_ids": ids, "token_type_ids": torch.randint(0, 2, (B, L))}


def test_counts() -> None:
    with torch.device("meta"):
        counts = {
            "model": sum(p.numel() for p in bert_base().parameters()),
            "masked": sum(p.numel() for p in bert_base(pooler=False).attach("mlm").parameters()),
            "tiny": sum(p.numel() for p in bert_tiny().parameters()),
        }
        assert MODELS["bert_base"](num_layers=1).config["num_layers"] == 1
    assert counts == {"model": 109_482_240, "masked": 109_514_298, "tiny": 18_304}


def test_outputs_gradients_and_maps_equal_transformers() -> None:
    other, config = theirs()
    ours = Bert.from_original(other.state_dict(), config)
    x = texts()
    out = ours(**x, text_mask=MASK, return_attention=True)
    expected = other(**x, attention_mask=MASK.long(), output_attentions=True)
    torch.testing.assert_close(out.sequence, expected.last_hidden_state, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(out.pooled, expected.pooler_output, atol=1e-10, rtol=1e-10)
    assert out.attentions is not None
    assert list(out.attentions) == ["layers.0.attention", "layers.1.attention"]
    for mine, wanted in zip(out.attentions.values(), expected.attentions, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)
        assert not mine[:, :, :, 1:][2].any()  # the third text has one token
    torch.manual_seed(2)
    up_sequence, up_pooled = torch.randn(B, L, D, dtype=torch.float64), torch.randn(B, D, dtype=torch.float64)
    (((out.sequence * up_sequence)[MASK]).sum() + (out.pooled * up_pooled).sum()).backward()
    ((expected.last_hidden_state * up_sequence)[MASK].sum() + (expected.pooler_output * up_pooled).sum()).backward()
    assert_same_gradients(ours, other)


def assert_same_gradients(ours: Any, other: nn.Module) -> None:
    """Parameter by parameter, under the original names."""
    with torch.no_grad():
        mine = dict(ours.named_parameters())
        for name, parameter in mine.items():
            assert parameter.grad is not None, name
            parameter.copy_(parameter.grad)
    written = ours.to_original()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(
            written[name], parameter.grad, atol=1e-10, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("kind", "heads", "dropped"),
    [
        ("BertModel", [], ()),
        ("BertForMaskedLM", ["mlm"], ()),
        ("BertForMaskedLM", ["mlm"], ("cls.predictions.decoder.bias",)),
        ("BertForMaskedLM", ["mlm"], ("cls.predictions.decoder.bias", "cls.predictions.decoder.weight")),
        ("BertForPreTraining", ["mlm", "nsp"], ()),
    ],
)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("buffer", [False, True])
def test_what_is_written_is_what_was_read(
    kind: str, heads: list[str], dropped: tuple[str, ...], old: bool, buffer: bool
) -> None:
    other, config = theirs(kind)
    state = {key: value for key, value in other.state_dict().items() if key not in dropped}
    if buffer:
        state["bert.embeddings.position_ids" if heads else "embeddings.position_ids"] = torch.arange(16)[None]
    if old:
        state = gamma_beta_written(state)
        assert any(key.endswith("LayerNorm.gamma") for key in state)
    ours = Bert.from_original(state, config)
    assert list(ours.heads) == heads
    written = ours.to_original()
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(written[key], value), key


def test_a_model_that_was_not_read_is_written_as_transformers_has_it() -> None:
    for kind, options, heads in (("BertModel", {}, []), ("BertForMaskedLM", {"pooler": False}, ["mlm"])):
        other, _ = theirs(kind)
        ours = bert_tiny(**options).attach(*heads)
        other.float().load_state_dict(ours.to_original(), strict=True)
        assert ours.to_original("gamma_beta").keys() == gamma_beta_written(other.state_dict()).keys()


def test_bare_weights_with_a_prefix_come_back_with_it() -> None:
    other, config = theirs()
    state = {f"bert.{key}": value for key, value in other.state_dict().items()}
    assert Bert.from_original(state, config).to_original().keys() == state.keys()


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_heads_equal_transformers(kind: str) -> None:
    other, config = theirs(kind)
    ours = Bert.from_original(other.state_dict(), config)
    x = texts()
    out, expected = ours(**x, text_mask=MASK), other(**x, attention_mask=MASK.long())
    logits = expected.logits if kind == "BertForMaskedLM" else expected.prediction_logits
    torch.testing.assert_close(out.mlm_logits, logits, atol=1e-10, rtol=1e-10)
    total, wanted = out.mlm_logits[MASK].square().sum(), logits[MASK].square().sum()
    if kind == "BertForPreTraining":
        torch.testing.assert_close(out.nsp_logits, expected.seq_relationship_logits, atol=1e-10, rtol=1e-10)
        total, wanted = total + out.nsp_logits.square().sum(), wanted + expected.seq_relationship_logits.square().sum()
        assert ours(**x, tasks=["nsp"]).info.keys() == {"sequence", "pooled", "nsp_logits"}
    total.backward()
    wanted.backward()
    assert_same_gradients(ours, other)


def test_the_tied_matrix_must_agree() -> None:
    other, config = theirs("BertForMaskedLM")
    state = {key: value.clone() for key, value in other.state_dict().items()}
    for key in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        with pytest.raises(ValueError, match=f"{key} differs from"):
            Bert.from_original({**state, key: state[key] + 1}, config)


@pytest.mark.parametrize("task", ["mlm", "nsp"])
def test_folder_round_trip_is_exact(task: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert_tiny().attach(task).eval()
    read = Bert.from_pretrained(model.save_pretrained(tmp_path))
    assert read.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key
    x = texts()
    assert torch.equal(read(**x)[f"{task}_logits"], model(**x)[f"{task}_logits"])


def test_skipping_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = bert_tiny().double().attach("mlm").eval()
    x, mask = texts(), MASK.clone()
    mask[3] = False  # a text that is absent
    found = []
    for skip in (False, True):
        out = model(**x, text_mask=mask, skip_padding=skip)
        total = (out.mlm_logits[mask].square().sum() + out.pooled.square().sum()) * 1e-3
        grads = torch.autograd.grad(total, list(model.parameters()))
        found.append((out.sequence[mask], out.pooled, out.mlm_logits[mask], *grads))
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-10, rtol=1e-9)
    assert not model.encode(**x, text_mask=mask, skip_padding=True)[~mask].any()


def test_an_absent_text_reaches_nothing() -> None:
    torch.manual_seed(0)
    model = bert_tiny().eval()
    x, mask = texts(), MASK.clone()
    mask[3] = False
    out = model(**x, text_mask=mask)
    other = model(x["input_ids"].clone().index_fill_(0, torch.tensor([3]), 7), x["token_type_ids"], mask)
    assert torch.equal(out.sequence, other.sequence)
    assert torch.equal(out.pooled, other.pooled)
    assert not out.sequence[3].any()
    assert out.pooled.isfinite().all()
    (gradient,) = torch.autograd.grad(out.pooled[3].sum(), model.embeddings.words.weight)
    assert not gradient.any()


def test_padding_does_not_change_what_is_present() -> None:
    torch.manual_seed(0)
    model = bert_tiny().double().eval()
    x = texts()
    whole = model(**x, text_mask=MASK)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        alone = model(**{key: value[row : row + 1, :length] for key, value in x.items()})
        torch.testing.assert_close(whole.sequence[row, :length], alone.sequence[0])
        torch.testing.assert_close(whole.pooled[row], alone.pooled[0])
    # A text that is padded in front is pooled at its first token, too.
    left = model(x["input_ids"].flip(1), text_mask=MASK.flip(1))
    first = L - MASK.sum(dim=1)
    torch.testing.assert_close(left.pooled, model.pooler(left.sequence[torch.arange(B), first][:, None]))  # type: ignore[misc]


@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole_and_exports(training: bool) -> None:
    torch.manual_seed(0)
    model = bert_tiny(dropout=0.0, attention_dropout=0.0).attach("mlm").train(training)
    x = (texts()["input_ids"], texts()["token_type_ids"], MASK)

    expected = model(*x).mlm_logits
    compiled = torch.compile(lambda *y: model(*y, skip_padding=True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x).mlm_logits, expected)
    if not training:
        program = torch.export.export(model, x)
        torch.testing.assert_close(program.module()(*x).mlm_logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = bert_tiny().double().eval()
    expected = model(**texts(), text_mask=MASK).sequence
    half = model.to(dtype)(**texts(), text_mask=MASK).sequence
    assert half.dtype == dtype
    torch.testing.assert_close(half[MASK].double(), expected[MASK], atol=0.06, rtol=0.05)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu", "silu"])
def test_activations_of_the_config(activation: str) -> None:
    other, config = theirs(hidden_act=activation)
    ours = Bert.from_original(other.state_dict(), config)
    x = texts()
    torch.testing.assert_close(ours(**x).sequence, other(**x).last_hidden_state, atol=1e-10, rtol=1e-10)


def test_refusals() -> None:
    other, config = theirs()
    state = other.state_dict()
    with pytest.raises(ValueError, match="a BERT checkpoint needs its config"):
        Bert.from_original(state)
    with pytest.raises(ValueError, match="position_embedding_type must be 'absolute', got 'relative_key'"):
        Bert.from_original(state, {**config, "position_embedding_type": "relative_key"})
    with pytest.raises(ValueError, match="is_decoder must be False, got True"):
        Bert.from_original(state, {**config, "is_decoder": True})
    with pytest.raises(ValueError, match="got 'gelo'"):
        Bert.from_original(state, {**config, "hidden_act": "gelo"})
    with pytest.raises(ValueError, match=r"cannot map classifier\.weight"):
        Bert.from_original({**state, "classifier.weight": torch.zeros(2, D)}, config)
    with pytest.raises(ValueError, match=r"word_embeddings.weight is \(50, 32\), expected \(51, 32\)"):
        Bert.from_original(state, {**config, "vocab_size": 51})
    with pytest.raises(ValueError, match=r"missing encoder\.layer\.2\.attention\.self\.query\.weight"):
        Bert.from_original(state, {**config, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        bert_tiny()(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="with pooler=True"):
        bert_tiny(pooler=False).attach("nsp")
    with pytest.raises(ValueError, match="a tied head needs the weight"):
        TransformHead(5, 7, tied=True)(torch.zeros(2, 5))


def test_positions_may_start_later() -> None:
    """RoBERTa's first two positions are never used."""
    torch.manual_seed(0)
    layer = BertEmbeddings(V, D, max_length=7, first_position=2, dropout=0.0)
    ids = torch.ones(1, 5, dtype=torch.long)
    summed = layer.words(ids) + layer.positions.weight[2:7] + layer.types.weight[0]
    torch.testing.assert_close(layer(ids), layer.norm(summed))
    with pytest.raises(ValueError, match="at most 5 tokens, got 6"):
        layer(torch.ones(1, 6, dtype=torch.long))


def test_old_names_and_prefixes() -> None:
    state = {
        "module.a.LayerNorm.gamma": torch.ones(1),
        "module.a.LayerNorm.beta": torch.zeros(1),
        "module.b": torch.ones(2),
    }
    assert list(gamma_beta_renamed(state)) == ["a.LayerNorm.weight", "a.LayerNorm.bias", "b"]


SENTENCES = [
    "a dog runs in the park",
    "The committee, having met twice, could not agree on anything but the date of its third meeting.",
    "stocks fell",
    "Zwei Katzen schlafen auf dem warmen Dach, während es unten regnet.",
    "",
]


@pytest.mark.weights
@pytest.mark.skipif(path_of("minilm") is None, reason="polyfuse weights fetch minilm")
def test_minilm_equals_transformers_on_real_sentences() -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = path_of("minilm")
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    encoded = tokenizer.encode_batch(SENTENCES)
    ids = torch.tensor([one.ids for one in encoded])
    mask = torch.tensor([one.attention_mask for one in encoded], dtype=torch.bool)
    assert not mask.all()
    other = transformers.BertModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa").eval()
    ours = Bert.from_original(folder / "model.safetensors", folder / "config.json")
    with torch.no_grad():
        expected = other(input_ids=ids, attention_mask=mask.long())
        for skip in (False, True):
            out = ours(ids, text_mask=mask, skip_padding=skip)
            assert float((out.sequence - expected.last_hidden_state)[mask].abs().max()) < 1e-5
            assert float((out.pooled - expected.pooler_output).abs().max()) < 1e-5
    state = load_file(folder / "model.safetensors")
    written = ours.to_original()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], value) for key, value in state.items())
