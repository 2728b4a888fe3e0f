"""UNITER against a slow reference of its own, and every way of wiring it wrongly that we know of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.models import reference_uniter as reference
from tests.models.reference_uniter import ANSWERS, CLASSES, CONFIG, REGION_DIM, Row, filled, original_state
from torch import Tensor, nn

from polyfuse.models import uniter as module
from polyfuse.models.convert import write_original
from polyfuse.models.output import ModelOutput
from polyfuse.models.uniter import UNITER, compact

PRETRAINING = ("mlm", "mrfr", "mrc", "itm")
EXACT = {"rtol": 0.0, "atol": 1e-10}


def rows() -> list[Row]:
    """Four pairs of different lengths; shortest text with fewest regions, so that compacting changes the layout."""
    made = []
    for index, (words, regions) in enumerate(((5, 3), (3, 4), (4, 2), (2, 1))):
        ids = [(7 * index + 3 * place + 1) % 22 + 1 for place in range(words)]
        made.append(
            Row(
                words=ids,
                types=[place % 2 for place in range(words)],
                features=[filled(f"features {index} {place}", REGION_DIM) for place in range(regions)],
                boxes=[filled(f"box {index} {place}", 7) for place in range(regions)],
                hidden=[(index + place) % 3 == 0 for place in range(regions)],
            )
        )
    return made


def batch(made: Sequence[Row]) -> dict[str, Tensor]:
    """Our arguments, padded at the end of text and regions."""
    count = len(made)
    length, number = max(len(row.words) for row in made), max(len(row.features) for row in made)
    tensors = {
        "input_ids": torch.zeros(count, length, dtype=torch.long),
        "token_type_ids": torch.zeros(count, length, dtype=torch.long),
        "text_mask": torch.zeros(count, length, dtype=torch.bool),
        "region_features": torch.zeros(count, number, REGION_DIM, dtype=torch.float64),
        "region_boxes": torch.zeros(count, number, 7, dtype=torch.float64),
        "region_mask": torch.zeros(count, number, dtype=torch.bool),
        "region_masked": torch.zeros(count, number, dtype=torch.bool),
    }
    for index, row in enumerate(made):
        words, regions = len(row.words), len(row.features)
        tensors["input_ids"][index, :words] = torch.tensor(row.words)
        tensors["token_type_ids"][index, :words] = torch.tensor(row.types or [0] * words)
        tensors["text_mask"][index, :words] = True
        tensors["region_mask"][index, :regions] = True
        tensors["region_features"][index, :regions] = torch.stack(row.features)
        tensors["region_boxes"][index, :regions] = torch.stack(row.boxes)
        tensors["region_masked"][index, :regions] = torch.tensor(row.hidden or [False] * regions)
    return tensors


def flat(nested: Sequence[Sequence[Tensor]], head: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([head(x) for row in nested for x in row])


def expected(state: Mapping[str, Tensor], made: Sequence[Row], tasks: Sequence[str], config: Any = CONFIG) -> Any:
    """Every output at real tokens and regions, one after another."""
    got = reference.run(state, config, made)
    head = reference.linear
    outputs = {
        "sequence": torch.cat([torch.stack(row) for row in got.sequence]),
        "pooled": torch.stack(got.pooled),
    }
    for task in tasks:
        if task == "mlm":
            outputs["mlm_logits"] = flat(got.text, lambda x: reference.mlm(state, config, x))
        elif task == "mrfr":
            outputs["region_regression"] = flat(got.regions, lambda x: reference.mrfr(state, x))
        elif task == "mrc":
            outputs["region_logits"] = flat(got.regions, lambda x: reference.three(state, "region_classifier.net", x))
        elif task == "itm":
            outputs["match_logits"] = torch.stack([head(state, "itm_output", x) for x in got.pooled])
        elif task == "rank":
            outputs["rank_logits"] = torch.stack([head(state, "rank_output", x) for x in got.pooled])
        elif task in ("vqa", "vcr"):
            found = [reference.three(state, f"{task}_output", x) for x in got.pooled]
            outputs[f"{task}_logits"] = torch.stack(found)
        elif task == "re":
            outputs["re_logits"] = flat(got.regions, lambda x: head(state, "re_output", x)[0])
        elif task == "re2":
            outputs["re_logits"] = flat(got.regions, lambda x: reference.three(state, "re_output", x)[0])
        elif task == "triplet":
            outputs["nlvr2_logits"] = torch.stack([head(state, "nlvr2_output", x) for x in got.pooled])
        elif task == "paired":
            pairs = [torch.cat(got.pooled[i : i + 2]) for i in range(0, len(made), 2)]
            outputs["nlvr2_logits"] = torch.stack([head(state, "nlvr2_output", x) for x in pairs])
        elif task == "paired_attention":
            streams = [a + b for a, b in zip(got.text, got.regions, strict=True)]
            found = [
                reference.paired_attention(state, config, streams[i], streams[i + 1]) for i in range(0, len(made), 2)
            ]
            outputs["nlvr2_logits"] = torch.stack(found)
        elif task == "wra":
            outputs["wra_cost"] = torch.stack(
                [
                    reference.cosine_cost(x, y)
                    for text, regions in zip(got.text, got.regions, strict=True)
                    for x in text
                    for y in regions
                ]
            )
    return outputs


def selected(output: ModelOutput, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same selection of our outputs."""
    info = dict(output.info)
    text, regions = tensors["text_mask"], tensors["region_mask"]
    info["sequence"] = compact(info["sequence"], text, regions).flatten(0, 1)
    for name, mask in (
        ("mlm_logits", text),
        ("region_regression", regions),
        ("region_logits", regions),
        ("re_logits", regions),
        ("wra_cost", text[:, :, None] & regions[:, None]),
    ):
        if name in info:
            info[name] = info[name][mask]
    return info


def ours(model: UNITER, tensors: Mapping[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """Run the model and select."""
    return selected(model(**tensors, **kwargs), tensors)


def loss_of(outputs: Mapping[str, Tensor], real: Tensor) -> Tensor:
    """Every number of every output counts with a weight of its own; padding of the stream does not."""
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(outputs):
        value = outputs[name][real] if name == "sequence" else outputs[name]
        total = total + (value * filled(f"loss {name}", *value.shape)).sum()
    return total


def real_places(made: Sequence[Row]) -> Tensor:
    longest = max(len(row.words) + len(row.features) for row in made)
    return torch.tensor([place < len(row.words) + len(row.features) for row in made for place in range(longest)])


@pytest.mark.parametrize(
    ("heads", "extra"),
    [
        (PRETRAINING, ("wra",)),
        (("itm", "rank"), ()),
        (("vqa", "re"), ()),
        (("vcr", "re2"), ()),
        (("paired",), ()),
        (("triplet",), ()),
        (("paired_attention",), ()),
    ],
)
def test_outputs_and_gradients_equal_the_reference(heads: tuple[str, ...], extra: tuple[str, ...]) -> None:
    state = original_state(heads=heads)
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    wanted = expected(leaves, rows(), (*heads, *extra))
    model = UNITER.from_original(state, CONFIG).attach(*extra)
    found = ours(model, batch(rows()))
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda m, name=name: f"{name}: {m}")

    real = real_places(rows())
    loss_of(wanted, real).backward()
    loss_of(found, real).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert all(value is not None for value in gradients.values())
    rules, _ = model.original_rules(None, "uniter")
    theirs = write_original({k: v for k, v in gradients.items() if v is not None}, rules)
    copies = {copy for rule in rules for copy in rule.copies}
    assert set(theirs) == set(state)
    for name, value in theirs.items():
        if name not in copies:
            wanted_gradient = leaves[name].grad
            wanted_gradient = torch.zeros_like(value) if wanted_gradient is None else wanted_gradient
            torch.testing.assert_close(value, wanted_gradient, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_region_heads_keep_gelu_whatever_the_encoder_has(activation: str) -> None:
    config = {**CONFIG, "hidden_act": activation}
    state = original_state(heads=PRETRAINING)
    found = ours(UNITER.from_original(state, config), batch(rows()))
    for name, value in expected(state, rows(), PRETRAINING, config).items():
        torch.testing.assert_close(found[name], value, **EXACT)


def test_one_modality_equals_the_reference() -> None:
    state = original_state(heads=("itm",))
    model = UNITER.from_original(state, CONFIG)
    everything = batch(rows())
    text = {name: everything[name] for name in ("input_ids", "token_type_ids", "text_mask")}
    image = {name: value for name, value in everything.items() if name.startswith("region_")}
    texts = [Row(words=row.words, types=row.types) for row in rows()]
    images = [Row(features=row.features, boxes=row.boxes, hidden=row.hidden) for row in rows()]
    for given, wanted in ((text, texts), (image, images)):
        output = model(**given)
        outputs = expected(state, wanted, ("itm",))
        mask = given.get("text_mask", given.get("region_mask"))
        assert mask is not None
        torch.testing.assert_close(output.sequence[mask], outputs["sequence"][mask.flatten()], **EXACT)
        torch.testing.assert_close(output.pooled, outputs["pooled"], **EXACT)
        torch.testing.assert_close(output.match_logits, outputs["match_logits"], **EXACT)


def test_text_alone_is_the_bert_of_transformers() -> None:
    """Embeddings, layers, pooler and masked-word head, with and without padding: the same code base, another hand."""
    transformers = pytest.importorskip("transformers")
    config = {key: value for key, value in CONFIG.items() if key != "initializer_range"}
    torch.manual_seed(0)
    bert = transformers.BertForPreTraining(transformers.BertConfig(**config)).double().eval()
    theirs = {name.replace("bert.", "uniter."): value for name, value in bert.state_dict().items()}
    left_out = ("cls.seq_relationship", "cls.predictions.decoder.bias")
    state = {name: value for name, value in theirs.items() if not name.startswith(left_out)}
    state |= {name: value for name, value in original_state().items() if "img_embeddings" in name}
    made = batch(rows())
    given = {"input_ids": made["input_ids"], "token_type_ids": made["token_type_ids"]}
    model = UNITER.from_original(state, CONFIG)
    for mask in (None, made["text_mask"]):
        wanted = bert(**given, attention_mask=None if mask is None else mask.long(), output_hidden_states=True)
        found = model(**given, text_mask=mask)
        here = torch.ones_like(made["text_mask"]) if mask is None else mask
        torch.testing.assert_close(found.sequence[here], wanted.hidden_states[-1][here], **EXACT)
        torch.testing.assert_close(found.mlm_logits[here], wanted.prediction_logits[here], **EXACT)
        pooled = bert.bert.pooler(wanted.hidden_states[-1])
        torch.testing.assert_close(found.pooled, pooled, **EXACT)


def test_region_types_equal_the_reference() -> None:
    """NLVR2 tells its two images apart by token types 1 and 2."""
    config = {**CONFIG, "type_vocab_size": 3}
    state = original_state(config, ("paired",))
    made = rows()
    for index, row in enumerate(made):
        row.region_types = [1 + index % 2] * len(row.features)
    tensors = batch(made)
    kinds = torch.tensor([1, 2, 1, 2])[:, None].expand(-1, 4)
    # The authors' file keeps saying 2 types: they append the third after reading it.
    model = UNITER.from_original(state, CONFIG)
    assert model.config["type_vocab_size"] == 3
    found = ours(model, tensors, region_type_ids=kinds)
    for name, value in expected(state, made, ("paired",), config).items():
        torch.testing.assert_close(found[name], value, **EXACT)
    assert not torch.allclose(ours(model, tensors)["nlvr2_logits"], found["nlvr2_logits"], atol=1e-4)


def _without(name: str) -> Callable[[UNITER, dict[str, Tensor], pytest.MonkeyPatch], None]:
    def broken(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
        setattr(model.regions, name, nn.Identity())

    return broken


def _type_0(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    tensors["region_type_ids"] = torch.zeros_like(tensors["region_mask"], dtype=torch.long)


def _no_text_types(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    del tensors["token_type_ids"]


def _area_first(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    tensors["region_boxes"] = tensors["region_boxes"][..., [0, 1, 2, 3, 6, 4, 5]]


def _row_0_added(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    tensors["region_features"] = tensors["region_features"] + model.regions.masked.weight[0].detach()


def _features_kept(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    row = model.regions.masked.weight[1].detach()
    tensors["region_features"] = tensors["region_features"] + tensors.pop("region_masked")[..., None] * row


def _no_mask_row(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    tensors["region_features"] = tensors["region_features"].masked_fill(tensors.pop("region_masked")[..., None], 0.0)


def _tanh_gelu(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        patch.setattr(layer.mlp, "activation", "gelu_tanh")


def _pre_norm(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        patch.setattr(layer, "norm_first", True)


def _large_eps(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-5


def _relu_pooler(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    model.pooler.activation = "relu"


def _pools_first_region(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    length = tensors["input_ids"].shape[1]
    patch.setattr(module, "first_present", lambda x, mask: x[:, length : length + 1])


def _pools_mean(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "first_present", lambda x, mask: x.mean(dim=1, keepdim=True))


def _padding_seen(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "joint_mask", lambda *parts: None)


def _region_positions(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    plain = model.regions.forward
    places = model.embeddings.positions.weight[: tensors["region_mask"].shape[1]].detach()
    patch.setattr(model.regions, "forward", lambda f, b, types, *masks: plain(f, b, types + places, *masks))


def _heads_relu(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    model.heads["mrc"].activation = "relu"


def _classes_without_norm(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    model.heads["mrc"].norm = nn.Identity()


def _untied_words(model: UNITER, tensors: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    other = filled("another table", *model.embeddings.words.weight.shape)
    plain = model.heads["mlm"].forward
    patch.setattr(model.heads["mlm"], "forward", lambda x, weight: plain(x, other))


@pytest.mark.parametrize(
    "wrong",
    [
        _without("feature_norm"),
        _without("box_norm"),
        _without("norm"),
        _type_0,
        _no_text_types,
        _area_first,
        _row_0_added,
        _features_kept,
        _no_mask_row,
        _tanh_gelu,
        _pre_norm,
        _large_eps,
        _relu_pooler,
        _pools_first_region,
        _pools_mean,
        _padding_seen,
        _region_positions,
        _heads_relu,
        _classes_without_norm,
        _untied_words,
    ],
    ids=lambda wrong: wrong.__qualname__.strip("_"),
)
def test_a_wrong_wiring_is_seen(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = original_state(heads=PRETRAINING)
    wanted = expected(state, rows(), PRETRAINING)
    model = UNITER.from_original(state, CONFIG)
    tensors = batch(rows())
    right = ours(model, tensors)
    wrong(model, tensors, monkeypatch)
    found = selected(model(**tensors), batch(rows()))
    real = real_places(rows())
    for name in wanted:  # the comparison itself passes where nothing is broken
        torch.testing.assert_close(right[name], wanted[name], **EXACT)
    differences = [
        (found[name][real] - wanted[name][real] if name == "sequence" else found[name] - wanted[name]).abs().max()
        for name in wanted
    ]
    assert max(differences) > 1e-6


def test_regression_uses_the_feature_matrix_transposed() -> None:
    """With as many features as hidden units the untransposed matrix would fit, too."""
    model = UNITER(vocab_size=23, dim=10, num_layers=1, num_heads=2, hidden_dim=13, region_dim=10).attach("mrfr").eval()
    matrix = model.regions.feature.weight
    hidden = filled("hidden", 3, 10).float()
    head = model.heads["mrfr"]
    normed = head.norm(torch.nn.functional.gelu(head.dense(hidden)))
    found = head(hidden, matrix.t())
    torch.testing.assert_close(found, normed @ matrix + head.bias)
    assert not torch.allclose(found, normed @ matrix.t() + head.bias, atol=1e-4)
    features = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    output = model(region_features=features, region_boxes=torch.zeros(2, 3, 7))
    torch.testing.assert_close(output.region_regression, head(output.sequence, matrix.t()))


def test_rank_starts_as_the_match_class() -> None:
    state = original_state(heads=("itm",))
    model = UNITER.from_original(state, CONFIG).attach("itr")
    output = model(**batch(rows()))
    torch.testing.assert_close(output.rank_logits, output.match_logits[:, 1:], **EXACT)
    assert not torch.allclose(output.rank_logits, output.match_logits[:, :1], atol=1e-3)


def test_losses_of_the_authors_follow_from_the_outputs() -> None:
    """Feature regression and both class losses, over masked regions, targets of class 0 (background) excluded."""
    state = original_state(heads=PRETRAINING)
    made, tensors = rows(), batch(rows())
    got = reference.run(state, CONFIG, made)
    output = UNITER.from_original(state, CONFIG)(**tensors)
    masked = tensors["region_masked"]
    hidden = [(i, j) for i, row in enumerate(made) for j, there in enumerate(row.hidden or []) if there]
    targets = torch.stack([made[i].features[j] for i, j in hidden])
    soft = filled("targets", len(hidden), CLASSES).softmax(dim=1)
    regression, divergence, classes = [], [], []
    for (i, j), target, shares in zip(hidden, targets, soft, strict=True):
        x = got.regions[i][j]
        regression.append((reference.mrfr(state, x) - target) ** 2)
        logs = torch.stack(reference.softmax(list(reference.three(state, "region_classifier.net", x)))).log()
        divergence.append(torch.stack([p * (p.log() - q) for p, q in zip(shares, logs, strict=True)]))
        chances = shares.tolist()
        classes.append(-logs[chances.index(max(chances[1:]))])
    functional = torch.nn.functional
    found = functional.mse_loss(output.region_regression[masked], targets, reduction="none")
    torch.testing.assert_close(found, torch.stack(regression), rtol=1e-9, atol=1e-9)
    logits = output.region_logits[masked]
    found = functional.kl_div(logits.log_softmax(dim=-1), soft, reduction="none")
    torch.testing.assert_close(found, torch.stack(divergence), rtol=1e-9, atol=1e-9)
    found = functional.cross_entropy(logits, soft[:, 1:].argmax(dim=-1) + 1, reduction="none")
    torch.testing.assert_close(found, torch.stack(classes), rtol=1e-9, atol=1e-9)


def test_sizes_of_the_heads_come_from_the_tensors() -> None:
    model = UNITER.from_original(original_state(heads=("mrc", "vqa", "re2", "paired_attention")), CONFIG)
    assert model.head_config == {
        "mrc": {"num_classes": CLASSES},
        "vqa": {"num_answers": ANSWERS},
        "re": {"num_layers": 2},
        "nlvr2": {"variant": "paired_attention"},
    }
