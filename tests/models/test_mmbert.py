"""MMBERT: the original forward pass written out in loops, each of its defects, names, counts, missing inputs."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers import TransformerLayer
from polyfuse.models.mmbert import MMBERT, mmbert_medical, mmbert_tiny
from polyfuse.models.mmbert_original import CONVS, DEFECTS

V, D, HEADS, LAYERS, WIDTH, CLASSES = 53, 12, 3, 2, 4, 7
SIZES: dict[str, Any] = {
    "vocab_size": V, "dim": D, "num_heads": HEADS, "num_layers": LAYERS, "hidden_dim": 20, "max_length": 17,
    "positions": 19, "depths": (1, 2, 1, 1), "resnet_width": WIDTH, "cls_id": 2, "sep_id": 3,
}  # fmt: skip
B, L = 2, 6
OFF: dict[str, Any] = dict.fromkeys(DEFECTS, False)
ON: dict[str, Any] = dict.fromkeys(DEFECTS, True)


def hash_filled(model: nn.Module) -> Any:
    """Weights that depend on their name alone; norms and running statistics are far from the identity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=value.dtype)
            scale = noise.abs() * 0.3 + 0.7 if value.ndim == 1 and not name.endswith("bias") else noise * 0.3
            value.copy_(scale)
    return model


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(B, 3, 37, 41, generator=generator, dtype=dtype)
    ids = torch.tensor([[2, 31, 44, 9, 52, 3], [2, 17, 3, 0, 0, 0]])
    return {"images": images, "input_ids": ids, "text_mask": ids != 0}


# --- the original, as plain as it gets, on the original's names ---------------------------------------------------


def batch_norm(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    part = [state[f"{key}.{name}"][None, :, None, None] for name in ("running_mean", "running_var", "weight", "bias")]
    return (x - part[0]) / torch.sqrt(part[1] + 1e-5) * part[2] + part[3]


def layer_norm(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-12) * weight + bias


def resnet_maps(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    start = "transformer.trans.model"
    x = batch_norm(state, f"{start}.bn1", F.conv2d(x, state[f"{start}.conv1.weight"], stride=2, padding=3)).clamp(min=0)
    maps = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        block = 0
        while f"{start}.layer{stage}.{block}.conv1.weight" in state:
            key, stride = f"{start}.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = batch_norm(state, f"{key}.bn1", F.conv2d(x, state[f"{key}.conv1.weight"])).clamp(min=0)
            y = F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride, padding=1)
            y = batch_norm(state, f"{key}.bn2", y).clamp(min=0)
            y = batch_norm(state, f"{key}.bn3", F.conv2d(y, state[f"{key}.conv3.weight"]))
            if f"{key}.downsample.0.weight" in state:
                x = batch_norm(
                    state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride)
                )
            x = (x + y).clamp(min=0)
            block += 1
        maps.append(x)
    return maps


def linear(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    return state[f"{key}.weight"] @ x + state[f"{key}.bias"]


def original_layers(
    state: dict[str, Tensor], images: Tensor, ids: Tensor, mask: Tensor, *, num_visual: int = 5, idle_norm: bool = True
) -> list[list[list[Tensor]]]:
    """``[layer][row][token]`` vectors: what the authors' ``Transformer`` returns, for full rows of 1 + 5 + 1 + text."""
    maps = resnet_maps(state, images)[::-1]
    table = "transformer.bert_embedding"
    answer: list[list[list[Tensor]]] = [[] for _ in range(LAYERS)]
    for row in range(len(ids)):
        tokens = []
        for place, index in enumerate(ids[row].tolist()):
            x = state[f"{table}.word_embeddings.weight"][index] + state[f"{table}.position_embeddings.weight"][place]
            x = x + state[f"{table}.token_type_embeddings.weight"][0 if place < 7 else 1]
            tokens.append(layer_norm(state[f"{table}.LayerNorm.weight"], state[f"{table}.LayerNorm.bias"], x))
        for number in range(num_visual):
            kernel = state[f"transformer.trans.{CONVS[number]}.weight"][:, :, 0, 0]
            pixels = torch.einsum("dc,chw->dhw", kernel, maps[number][row]).clamp(min=0)
            tokens[1 + number] = pixels.flatten(1).mean(1)  # over what stood there: no position, type or norm
        for layer in range(LAYERS):
            tokens = original_layer(state, layer, tokens, mask[row], idle_norm)
            answer[layer].append(tokens)
    return answer


def original_layer(
    state: dict[str, Tensor], layer: int, tokens: list[Tensor], mask: Tensor, idle_norm: bool
) -> list[Tensor]:
    key, size = "transformer.blocks", D // HEADS
    norms = [(state[f"{key}.{name}.weight"], state[f"{key}.{name}.bias"]) for name in ("norm1", "norm2")]
    normed = [layer_norm(*norms[0], x) for x in tokens]
    q, k, v = ([linear(state, f"{key}.attention.{layer}.proj_{part}", x) for x in normed] for part in "qkv")
    after = []
    for i, x in enumerate(tokens):
        read = []
        for head in range(HEADS):
            cut = slice(head * size, (head + 1) * size)
            scores = [float("-inf") if not m else (q[i][cut] @ k[j][cut]) / math.sqrt(size) for j, m in enumerate(mask)]
            shares = torch.stack([torch.as_tensor(s, dtype=x.dtype) for s in scores]).softmax(0)
            read.append(sum(shares[j] * v[j][cut] for j in range(len(tokens))))
        x = x + linear(state, f"{key}.proj.{layer}", torch.cat(read))
        inside = linear(state, f"{key}.feedforward.{layer}.fc1", layer_norm(*norms[0 if idle_norm else 1], x))
        inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
        after.append(x + linear(state, f"{key}.feedforward.{layer}.fc2", inside))
    return after


def original_head(state: dict[str, Tensor], x: Tensor) -> Tensor:
    x = linear(state, "classifier.0", torch.tanh(linear(state, "fc1", x)))
    x = layer_norm(state["classifier.1.weight"], state["classifier.1.bias"], x)
    return linear(state, "classifier.2", x)


def original_row(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``[CLS] 0 0 0 0 0 [SEP] text [SEP]`` and its mask."""
    front = torch.tensor([[2, 0, 0, 0, 0, 0, 3]]).expand(len(ids), -1)
    return torch.cat([front, ids[:, 1:]], 1), torch.cat([torch.ones_like(front, dtype=torch.bool), mask[:, 1:]], 1)


def original(task: str, **kwargs: Any) -> tuple[MMBERT, dict[str, Tensor]]:
    """A model with every defect on, and its weights under the authors' names."""
    model = MMBERT(**{**SIZES, **ON, "image_places": 5, "resnet_classes": 11, **kwargs}).double()
    hash_filled(model.attach(task, **({"num_classes": CLASSES} if task == "vqa" else {}))).eval()
    return model, model.to_original()


@pytest.mark.parametrize("num_visual", [5, 3, 1])
@pytest.mark.parametrize("idle_norm", [True, False])
def test_token_states_and_mlm_are_the_originals(num_visual: int, idle_norm: bool) -> None:
    model, state = original("mlm", num_visual=num_visual, idle_norm=idle_norm)
    given = inputs()
    ids, mask = original_row(given["input_ids"], given["text_mask"])
    expected = original_layers(state, given["images"], ids, mask, num_visual=num_visual, idle_norm=idle_norm)[-1]
    out = model(**given)
    assert torch.equal(out.sequence_mask, mask)
    for row in range(B):
        for place in range(ids.shape[1]):
            torch.testing.assert_close(out.sequence[row, place], expected[row][place], rtol=0, atol=1e-10)
        for place, token in enumerate([0, *range(7, ids.shape[1])]):
            logits = original_head(state, expected[row][token])
            torch.testing.assert_close(out.mlm_logits[row, place], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("padding", [True, False])
def test_vqa_and_its_gradients_are_the_originals(layers: str, padding: bool) -> None:
    model, state = original("vqa", pooled_layers=layers, pool_padding=padding)
    given = inputs()
    leaf = given["images"].requires_grad_()
    state = {key: value.requires_grad_(value.is_floating_point()) for key, value in state.items()}
    ids, mask = original_row(given["input_ids"], given["text_mask"])
    states = original_layers(state, given["images"], ids, mask)
    logits = []
    for row in range(B):
        kept = [place for place in range(ids.shape[1]) if padding or mask[row, place]]
        used = states if layers == "all" else states[-1:]
        vectors = [torch.stack([layer[row][place] for place in kept]).mean(0) for layer in used]
        logits.append(original_head(state, torch.stack(vectors).mean(0)))
    expected = torch.stack(logits)
    out = model(**given).vqa_logits
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), leaf, retain_graph=True)
    (out * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-9)
    pairs = {
        "norms.0.first.weight": "transformer.blocks.norm1.weight",
        "visual.convs.4.weight": "transformer.trans.conv7.weight",
        "visual.convs.0.weight": "transformer.trans.conv2.weight",
        "resnet.layer3.0.conv2.weight": "transformer.trans.model.layer3.0.conv2.weight",
        "layers.1.attention.out.weight": "transformer.blocks.proj.1.weight",
        "heads.vqa.pooler.weight": "fc1.weight",
    }
    own = dict(model.named_parameters())
    for ours, theirs in pairs.items():
        (gradient,) = torch.autograd.grad((expected * weights).sum(), state[theirs], retain_graph=True)
        torch.testing.assert_close(own[ours].grad, gradient, rtol=0, atol=1e-9)


# --- each defect ---------------------------------------------------------------------------------------------------


def test_without_defects_layers_are_ordinary_pre_norm_layers() -> None:
    model = hash_filled(MMBERT(**SIZES, **OFF).double()).eval()
    given = inputs()
    row = model.encode(**given)
    x = model._embed(model.visual_tokens(given["images"]), torch.tensor([[31, 44, 9, 52, 3], [17, 3, 0, 0, 0]]))
    for index, layer in enumerate(model.layers):
        plain = TransformerLayer(D, HEADS, 20, eps=1e-12).double()
        names = {"attention_norm": model.norms[index].first, "mlp_norm": model.norms[index].second}
        for name, part in {**names, "attention": layer.attention, "mlp": layer.mlp}.items():
            getattr(plain, name).load_state_dict(part.state_dict())
        x = plain(x, row.mask)
        torch.testing.assert_close(row.layers[index], x, rtol=0, atol=1e-12)


def test_idle_norm_changes_the_result_and_is_frozen() -> None:
    clean, idle = (hash_filled(MMBERT(**SIZES, idle_norm=on).double()).eval() for on in (False, True))
    assert not torch.allclose(clean(**inputs()).sequence, idle(**inputs()).sequence)
    assert [pair.second.weight.requires_grad for pair in idle.norms] == [False] * LAYERS
    before = idle(**inputs()).sequence
    with torch.no_grad():
        idle.norms[0].second.weight.add_(1.0)
    assert torch.equal(idle(**inputs()).sequence, before)


def test_shared_norms_are_one_pair_for_all_layers() -> None:
    shared = hash_filled(MMBERT(**SIZES, shared_norms=True).double()).eval()
    apart = hash_filled(MMBERT(**SIZES).double()).eval()
    assert (len(shared.norms), len(apart.norms)) == (1, LAYERS)
    assert not torch.allclose(shared(**inputs()).sequence, apart(**inputs()).sequence)
    for pair in apart.norms:
        pair.load_state_dict(shared.norms[0].state_dict())
    torch.testing.assert_close(shared(**inputs()).sequence, apart(**inputs()).sequence)


def test_pool_padding_makes_the_answer_depend_on_padding() -> None:
    given = inputs()
    longer = {
        "images": given["images"],
        "input_ids": F.pad(given["input_ids"], (0, 3)),
        "text_mask": F.pad(given["text_mask"], (0, 3)),
    }
    answers = {}
    for on in (False, True):
        model = hash_filled(MMBERT(**SIZES, pool_padding=on).double().attach("vqa", num_classes=CLASSES)).eval()
        answers[on] = model(**given).vqa_logits, model(**longer).vqa_logits
    torch.testing.assert_close(*answers[False])
    assert not torch.allclose(*answers[True])


def test_label_zero_is_left_out_unless_the_defect_is_on() -> None:
    assert mmbert_tiny().mlm_ignore_index == 0
    assert mmbert_tiny(count_padding_label=True).mlm_ignore_index is None


def test_five_passes_move_running_statistics_up_to_five_times() -> None:
    once, five = (hash_filled(MMBERT(**SIZES, five_passes=on, dropout=0.0).double()).train() for on in (False, True))
    leaves = [inputs() | {"images": inputs()["images"].requires_grad_()} for _ in range(2)]
    start = once.resnet.bn1.running_mean.clone()
    tokens = [model.visual_tokens(given["images"]) for model, given in zip((once, five), leaves, strict=True)]
    torch.testing.assert_close(*tokens)
    for token in tokens:
        token.square().sum().backward()
    torch.testing.assert_close(leaves[0]["images"].grad, leaves[1]["images"].grad)
    once_moved, five_moved = once.resnet.bn1.running_mean - start, five.resnet.bn1.running_mean - start
    torch.testing.assert_close(five_moved, once_moved * (1 - 0.9**5) / (1 - 0.9))
    counts = [five.resnet.bn1, *(five.resnet.get_submodule(f"layer{s}.0.bn1") for s in range(1, 5))]
    assert [int(norm.num_batches_tracked) for norm in counts] == [5, 4, 3, 2, 1]


def test_left_over_places_hold_the_padding_embedding() -> None:
    tight, wide = (hash_filled(MMBERT(**SIZES, num_visual=3, image_places=p).double()).eval() for p in (None, 5))
    assert tight(**inputs()).image.shape == (B, 3, D)
    out = wide(**inputs())
    assert out.image.shape == (B, 5, D)
    assert out.sequence_mask[:, 4:6].all()


# --- names and counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mlm", "vqa"])
def test_original_names_round_trip(task: str) -> None:
    model, state = original(task)
    expected = {
        "transformer.bert_embedding.LayerNorm.bias", "transformer.trans.model.layer2.0.downsample.1.running_var",
        "transformer.trans.model.fc.weight", "transformer.trans.conv7.weight", "transformer.blocks.norm2.weight",
        "transformer.blocks.attention.1.proj_k.bias", "transformer.blocks.feedforward.0.fc2.weight", "fc1.bias",
        "classifier.2.weight",
    }  # fmt: skip
    assert expected <= set(state)
    buffers = {"transformer.bert_embedding.position_ids": torch.arange(19)[None]}
    arguments = {"heads": HEADS, "max_position_embeddings": 17, "lr": 2e-5, "cls_id": 2, "sep_id": 3}
    loaded = MMBERT.from_original({f"module.{k}": v for k, v in (state | buffers).items()}, arguments)
    assert all(loaded.config[defect] for defect in DEFECTS)
    assert list(loaded.heads) == [task]
    assert loaded.config["pooled_layers"] == "all"
    assert not loaded.training
    back = loaded.to_original()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    loaded.pooled_layers = model.pooled_layers
    torch.testing.assert_close(loaded(**inputs())[f"{task}_logits"], model(**inputs())[f"{task}_logits"])


def test_a_checkpoint_with_three_visual_tokens() -> None:
    model, state = original("vqa", num_visual=3)
    assert "transformer.trans.conv5.weight" not in state
    loaded = MMBERT.from_original(state, {"heads": HEADS, "num_vis": 3, "cls_id": 2, "sep_id": 3})
    assert (loaded.num_visual, loaded.image_places, loaded.pooled_layers) == (3, 5, "last")
    torch.testing.assert_close(loaded(**inputs()).vqa_logits, model(**inputs()).vqa_logits)


def test_what_does_not_fit_is_named() -> None:
    _, state = original("mlm")
    with pytest.raises(ValueError, match=r"cannot map transformer\.blocks\.attention\.7\.proj_q\.weight"):
        MMBERT.from_original({**state, "transformer.blocks.attention.7.proj_q.weight": torch.zeros(D, D)})
    with pytest.raises(ValueError, match=r"missing classifier\.2\.weight"):
        MMBERT.from_original({k: v for k, v in state.items() if not k.startswith("classifier")})
    with pytest.raises(ValueError, match=r"got 2 pairs and heads \['mlm'\]"):
        MMBERT(**SIZES).attach("mlm").to_original()


def test_published_size() -> None:
    resnet, embeddings = 60_192_808 - 2048 * 1000 - 1000, (30522 + 512 + 2 + 2) * 768
    convs = 768 * (2048 + 1024 + 512 + 256 + 64)
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768
    head = 2 * (768 * 768 + 768) + 2 * 768 + 769 * 30522
    with torch.device("meta"):
        model = mmbert_medical()
        count = sum(p.numel() for p in model.parameters())
        with_head = sum(p.numel() for p in model.attach("mlm").parameters())
        theirs = mmbert_medical(**ON, resnet_classes=1000).attach("mlm")
    assert count == resnet + embeddings + convs + 4 * (layer + 4 * 768) == 113_330_752
    assert with_head == count + head == 137_984_890
    # The original: the unused classifier, and one pair of norms instead of four.
    assert sum(p.numel() for p in theirs.parameters()) == with_head + 2_049_000 - 3 * 4 * 768 == 140_024_674


# --- missing inputs ------------------------------------------------------------------------------------------------


def test_absent_content_reaches_nothing() -> None:
    model = hash_filled(MMBERT(**SIZES, norm_mode="eval", dropout=0.0, embedding_dropout=0.0).double())
    model.attach("vqa", num_classes=CLASSES).attach("mlm").train()
    present = torch.tensor([[False, True], [True, False]])
    clean, broken = inputs(), inputs()
    broken["images"][0] = math.nan
    broken["input_ids"][1] = 51
    outs = [model(**given, present=present) for given in (clean, broken)]
    for name in outs[0].info:
        torch.testing.assert_close(outs[0][name], outs[1][name])
    assert not torch.allclose(outs[0].vqa_logits, model(**clean).vqa_logits)
    leaf = broken["images"].requires_grad_()
    out = model(**{**broken, "images": leaf}, present=present)
    (out.vqa_logits.sum() + out.mlm_logits.sum()).backward()
    assert not leaf.grad[0].any()
    assert leaf.grad[1].any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_absence_equals_leaving_out() -> None:
    model = hash_filled(MMBERT(**SIZES).double().attach("vqa", num_classes=CLASSES)).eval()
    given = inputs()
    no_image, no_text = torch.tensor([[False, True]] * B), torch.tensor([[True, False]] * B)
    without = {key: value for key, value in given.items() if key != "images"}
    torch.testing.assert_close(model(**given, present=no_image).vqa_logits, model(**without).vqa_logits)
    alone = model(given["images"])
    assert alone.sequence.shape == (B, 7, D)
    torch.testing.assert_close(model(**given, present=no_text).vqa_logits, alone.vqa_logits)
    nothing = model(**given, present=torch.zeros(B, 2, dtype=torch.bool))
    assert torch.isfinite(nothing.vqa_logits).all()
    torch.testing.assert_close(nothing.vqa_logits[0], nothing.vqa_logits[1])


def test_rows_do_not_depend_on_padding_or_on_each_other() -> None:
    model = hash_filled(MMBERT(**SIZES).double().attach("mlm")).eval()
    given = inputs()
    alone = model(given["images"][1:], given["input_ids"][1:, :3]).mlm_logits
    torch.testing.assert_close(model(**given).mlm_logits[1:, :3], alone)


def test_features_replace_images() -> None:
    model = hash_filled(MMBERT(**SIZES).double()).eval()
    given = inputs()
    images = given.pop("images")
    expected = model(images, **given).sequence
    tokens, maps = model.visual_tokens(images), model.resnet.feature_maps(images)
    torch.testing.assert_close(model(image_features=tokens, **given).sequence, expected)
    torch.testing.assert_close(model(image_features=maps, **given).sequence, expected)
    absent = torch.tensor([[False, True]] * B)
    nans = tuple(torch.full_like(part, math.nan) for part in maps)
    assert torch.isfinite(model(image_features=nans, **given, present=absent).sequence).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({}, "got neither"),
        ({"images": torch.zeros(2, 3, 33, 33), "input_ids": torch.ones(3, 4, dtype=torch.long)}, r"\[2, 3\]"),
        ({"input_ids": torch.ones(1, 40, dtype=torch.long)}, "at most 32 tokens, got 46"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.long), "present": torch.ones(1, 3)}, r"\(1, 2\), got \(1, 3\)"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.long), "text_mask": torch.ones(1, 3)}, r"\(1, 4\), got \(1, 3\)"),
        ({"image_features": torch.zeros(1, 4, 16)}, r"got \(1, 4, 16\)"),
        ({"image_features": (torch.zeros(1, 4, 2, 2),)}, "five maps, stem first, got 1"),
        ({"images": torch.zeros(1, 3, 33, 33), "image_features": torch.zeros(1, 5, 16)}, "not both"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.long), "tasks": ["vqa"]}, "'vqa'"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mmbert_tiny()(**call)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_visual": 6}, "got 6 in 6 places"),
        ({"image_places": 2}, "got 5 in 2 places"),
        ({"pooled_layers": "some"}, "'some'"),
        ({"max_length": 99}, "positions = 32, got 99"),
    ],
)
def test_wrong_arguments_are_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mmbert_tiny(**kwargs)


# --- the usual promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defects", [OFF, ON])
def test_every_parameter_that_wants_a_gradient_gets_one(defects: dict[str, Any]) -> None:
    model = mmbert_tiny(**defects, resnet_classes=5).attach("mlm").attach("vqa", num_classes=CLASSES).train()
    given = inputs(torch.float32)
    out = model(**given)
    (out.vqa_logits.square().sum() + out.mlm_logits.square().sum()).backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    zero = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    # A key's bias moves all scores of a row alike; the padding row of the word table is excluded by design.
    assert not [name for name in zero if not name.endswith("qkv.bias")]


def test_saved_and_read_again(tmp_path: Path) -> None:
    model = hash_filled(mmbert_tiny(**ON).attach("mlm").attach("vqa", num_classes=CLASSES)).eval()
    again = MMBERT.from_pretrained(model.save_pretrained(tmp_path))
    assert again.config == model.config
    given = inputs(torch.float32)
    assert torch.equal(again(**given).vqa_logits, model(**given).vqa_logits)
    assert torch.equal(again(**given).mlm_logits, model(**given).mlm_logits)


def test_attention_maps() -> None:
    model = mmbert_tiny().eval()
    out = model(**inputs(torch.float32), return_attention=True)
    assert list(out.attentions) == ["layers.0.attention", "layers.1.attention"]
    for weights in out.attentions.values():
        assert weights.shape == (B, 2, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, 2, 12))
        assert not weights[1, :, :, 9:].any()
    assert model(**inputs(torch.float32)).attentions is None


def test_compiles_and_exports() -> None:
    model = mmbert_tiny().attach("vqa", num_classes=CLASSES).eval()
    given = inputs(torch.float32)
    present = torch.tensor([[True, True], [True, False]])
    expected = model(**given, present=present).vqa_logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**given, present=present).vqa_logits, expected)
    program = torch.export.export(model, (), {**given, "present": present})
    torch.testing.assert_close(program.module()(**given, present=present).info["vqa_logits"], expected)


def test_half_precision() -> None:
    model = hash_filled(mmbert_tiny().attach("vqa", num_classes=CLASSES)).eval()
    given = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**given)
    torch.testing.assert_close(out.vqa_logits.float(), model(**given).vqa_logits, rtol=0.1, atol=0.2)
