"""CLIP against transformers' CLIPModel with the same random weights, and what holds for every input."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from polyfuse.layers.transformer import quick_gelu
from polyfuse.models.clip import CLIP, class_embeddings, clip_tiny, clip_vit_b16, clip_vit_b32, clip_vit_l14

BEGIN, END = 97, 98
TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": 0,
}
IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 6,
}


def theirs(seed: int = 0, attention: str = "sdpa", **text: object) -> transformers.CLIPModel:
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(text_config={**TEXT, **text}, vision_config=IMAGE, projection_dim=64)
    config._attn_implementation = attention
    model = transformers.CLIPModel(config).double().eval()
    for name, parameter in model.named_parameters():  # biases and norms too must be told apart
        if name != "logit_scale":
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model


def both(seed: int = 0, attention: str = "sdpa", **text: object) -> tuple[transformers.CLIPModel, CLIP]:
    model = theirs(seed, attention, **text)
    return model, CLIP.from_original(model.state_dict(), model.config.to_dict())


def batch(images: int = 3, texts: int = 5, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, BEGIN, (texts, length))
    ids[:, 0] = BEGIN
    for row in range(texts):
        ids[row, 3 + 2 * row :] = END if row % 2 else 0  # both paddings in use
        ids[row, 3 + 2 * row] = END
    return torch.randn(images, 3, 30, 30, dtype=torch.float64), ids


def info_nce(logits_BB: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.t(), target)) / 2


def test_outputs_equal_transformers() -> None:
    peer, model = both()
    images, ids = batch()
    expected, got = peer(input_ids=ids, pixel_values=images), model(images, ids)
    assert sum(p.numel() for p in model.parameters()) == 39_445
    torch.testing.assert_close(got.image_embedding, expected.image_embeds, atol=1e-10, rtol=0)
    torch.testing.assert_close(got.text_embedding, expected.text_embeds, atol=1e-10, rtol=0)
    torch.testing.assert_close(got.logits_per_image, expected.logits_per_image, atol=1e-9, rtol=0)
    torch.testing.assert_close(got.logits_per_text, expected.logits_per_text, atol=1e-9, rtol=0)
    assert expected.logits_per_image.std() > 0.1  # weights that make a wrong answer differ


def test_states_equal_transformers() -> None:
    peer, model = both()
    images, ids = batch()
    last = peer.vision_model.post_layernorm(peer.vision_model(images).last_hidden_state)
    torch.testing.assert_close(model.image.sequence(images), last, atol=1e-10, rtol=0)
    last = peer.text_model(ids).last_hidden_state
    torch.testing.assert_close(model.text.sequence(ids), last, atol=1e-10, rtol=0)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[:, 0] = True
    last = peer.text_model(ids, attention_mask=mask.long()).last_hidden_state[mask]
    # Ids under a False are read as 0 by us, as they are by them: states differ there and nowhere else.
    torch.testing.assert_close(model.text.sequence(ids, mask)[mask], last, atol=1e-10, rtol=0)


def test_loss_and_gradients_equal_transformers() -> None:
    peer, model = both()
    images, ids = batch(images=5)
    expected = peer(input_ids=ids, pixel_values=images, return_loss=True).loss
    loss = info_nce(model(images, ids).logits_per_image)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    expected.backward()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    twin = CLIP(**model.config).double()
    twin.load_state_dict(gradients)  # gradients under their original names, through the same rules
    for name, got in twin.to_original("hf").items():
        wanted = dict(peer.named_parameters())[name].grad
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0, msg=name)
        assert wanted.any() or "k_proj.bias" in name, name


def test_maps_equal_transformers_and_do_not_change_the_output() -> None:
    peer, model = both(attention="eager")  # the only one that gives maps; its softmax is in float32
    images, ids = batch()
    expected = peer(input_ids=ids, pixel_values=images, output_attentions=True)
    got = model(images, ids, return_attention=True)
    assert list(got.attentions) == [f"{tower}.layers.{i}.attention" for tower in ("image", "text") for i in range(2)]
    for index in range(2):
        image, text = (
            got.attentions[f"image.layers.{index}.attention"],
            got.attentions[f"text.layers.{index}.attention"],
        )
        torch.testing.assert_close(image, expected.vision_model_output.attentions[index], atol=1e-6, rtol=0)
        torch.testing.assert_close(text, expected.text_model_output.attentions[index], atol=1e-6, rtol=0)
        assert text.shape == (5, 4, 16, 16)
        assert not text.triu(1).any()
    torch.testing.assert_close(got.logits_per_image, model(images, ids).logits_per_image, atol=1e-12, rtol=0)
    assert model(images, ids).attentions is None


def test_exact_gelu_is_another_model() -> None:
    peer, model = both()
    images, ids = batch()
    other = CLIP.from_original(
        peer.state_dict(), {**peer.config.to_dict(), "vision_config": {**IMAGE, "hidden_act": "gelu"}}
    )
    assert other.config["activation"] == "gelu"
    assert other.config["text_activation"] == "quick_gelu"
    difference = (other(images, ids).image_embedding - model(images, ids).image_embedding).abs().max()
    assert difference > 1e-4
    torch.testing.assert_close(other(images, ids).text_embedding, model(images, ids).text_embedding)


def test_quick_gelu_is_its_formula() -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    got = quick_gelu(x)
    torch.testing.assert_close(got, x * torch.sigmoid(1.702 * x), atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(quick_gelu, x)
    with torch.no_grad():
        torch.testing.assert_close(quick_gelu(x), got.detach())
    assert torch.equal(x, before)


def test_both_poolings_of_the_end() -> None:
    _, model = both()
    legacy, old = both(eos_token_id=2)
    assert (model.config["pooling"], old.config["pooling"]) == ("eos", "argmax")
    images, ids = batch()
    torch.testing.assert_close(old(images, ids).text_embedding, legacy(ids, images).text_embeds, atol=1e-10, rtol=0)
    # A vocabulary with a token behind the end: the highest id is no longer the end.
    grown, ours = both(vocab_size=101)
    ids[:, 1] = 100
    torch.testing.assert_close(ours(images, ids).text_embedding, grown(ids, images).text_embeds, atol=1e-10, rtol=0)
    wrong = CLIP(**{**ours.config, "pooling": "argmax"}).double()
    wrong.load_state_dict(ours.state_dict())
    assert (wrong(images, ids).text_embedding - ours(images, ids).text_embedding).abs().max() > 1e-3


def test_an_embedding_does_not_depend_on_padding_or_neighbours() -> None:
    _, model = both()
    _, ids = batch()
    alone = torch.cat([model.encode_text(ids[row : row + 1, : 4 + 2 * row]) for row in range(5)])
    torch.testing.assert_close(model.encode_text(ids), alone, atol=1e-12, rtol=0)
    mask = torch.arange(16) < torch.tensor([[4], [6], [8], [10], [12]])
    noise = ids.masked_fill(~mask, -7)  # no such id
    torch.testing.assert_close(model.encode_text(noise, mask), alone, atol=1e-12, rtol=0)
    nothing = model.encode_text(ids, torch.zeros_like(mask))
    assert nothing.isfinite().all()


def test_a_tower_that_is_not_causal_is_padded_to_the_full_length() -> None:
    torch.manual_seed(0)
    model = clip_tiny(causal=False).double().eval()
    short = torch.tensor([[62, 5, 63]])
    long = torch.tensor([[62, 5, 63, 0, 0, 0], [62, 4, 3, 2, 8, 63]])
    full = torch.nn.functional.pad(short, (0, 13))
    expected = F.normalize(model.text(full), dim=-1)
    torch.testing.assert_close(model.encode_text(short), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.encode_text(long)[:1], expected, atol=1e-12, rtol=0)
    masked = model.encode_text(torch.tensor([[62, 5, 63, 9]]), torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(masked, expected, atol=1e-12, rtol=0)
    assert (F.normalize(model.text(short), dim=-1) - expected).abs().max() > 1e-4  # padding does matter here


@pytest.mark.parametrize(
    ("build", "image", "total"),
    [
        (clip_vit_b32, 87_849_216, 151_277_313),
        (clip_vit_b16, 86_192_640, 149_620_737),
        (clip_vit_l14, 303_966_208, 427_616_513),
    ],
)
def test_published_sizes(build: type, image: int, total: int) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.image.parameters()) == image
    assert sum(p.numel() for p in model.text.parameters()) == total - image - 1
    assert build(device="meta", embed_dim=64).config["embed_dim"] == 64


def test_saved_and_read_again(tmp_path: object) -> None:
    torch.manual_seed(0)
    model = clip_tiny(activation="gelu", pooling="eos").attach("classification", num_classes=7).eval()
    again = CLIP.from_pretrained(model.save_pretrained(tmp_path))  # type: ignore[arg-type]
    assert again.config == model.config
    images, ids = torch.rand(2, 3, 32, 32), torch.tensor([[62, 5, 63]])
    first, second = model(images, ids), again(images, ids)
    for name in first.info:
        assert torch.equal(first[name], second[name]), name
    assert second.classification_logits.shape == (2, 7)


def test_one_side_alone() -> None:
    model = clip_tiny().eval()
    images, ids = torch.rand(2, 3, 32, 32), torch.tensor([[62, 5, 63]])
    assert set(model(images).info) == {"image_embedding", "logit_scale"}
    assert set(model(input_ids=ids).info) == {"text_embedding", "logit_scale"}
    with pytest.raises(ValueError, match="got neither"):
        model()


def test_every_parameter_trains() -> None:
    torch.manual_seed(0)
    model = clip_tiny().attach("classification", num_classes=3)
    output = model(torch.rand(2, 3, 32, 32), torch.tensor([[62, 5, 63], [62, 9, 63]]))
    (info_nce(output.logits_per_image) + output.classification_logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or "qkv.bias" in name, name


def test_compiled_and_exported() -> None:
    torch.manual_seed(0)
    model = clip_tiny().eval()
    images, ids = torch.rand(2, 3, 32, 32), torch.tensor([[62, 5, 63, 0], [62, 9, 8, 63]])
    expected = model(images, ids).logits_per_image
    program = torch.export.export(model, (images, ids)).module()
    torch.testing.assert_close(program(images, ids).logits_per_image, expected)
    longer = ids.flip(0)
    torch.testing.assert_close(program(images, longer).logits_per_image, model(images, longer).logits_per_image)
    torch._dynamo.reset()
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(images, ids).logits_per_image, expected)


def test_zero_shot_classifier_is_mean_of_normalised_prompts() -> None:
    torch.manual_seed(0)
    model = clip_tiny().double().eval()

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[62, len(text) % 60, ord(text[-1]) % 60, 63] for text in texts])

    names, templates = ("ox", "heron", "eel"), ("a {}!", "one more {}?")
    got = class_embeddings(model, tokenize, names, templates)
    for row, name in enumerate(names):
        each = [model.text(tokenize([template.format(name)]))[0] for template in templates]
        mean = sum(vector / vector.norm() for vector in each) / 2
        torch.testing.assert_close(got[row], mean / mean.norm())
    model.attach("classification", num_classes=3)
    with torch.no_grad():
        model.heads["classification"].weight.copy_(model.scale() * got)
        model.heads["classification"].bias.zero_()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    output = model(images)
    torch.testing.assert_close(output.classification_logits, model.scale() * output.image_embedding @ got.t())
    with pytest.raises(ValueError, match="got 'a cat'"):
        class_embeddings(model, tokenize, names, ("a cat",))
    with pytest.raises(ValueError, match="got 0 and 1"):
        class_embeddings(model, tokenize, ())


def test_wrong_inputs_are_refused() -> None:
    model = clip_tiny()
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\), got \(2, 3, 31, 32\)"):
        model(torch.rand(2, 3, 31, 32))
    with pytest.raises(ValueError, match=r"L up to 16, got \(1, 17\)"):
        model(input_ids=torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(1, 3\), got \(1, 2\)"):
        model(input_ids=torch.zeros(1, 3, dtype=torch.long), text_mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="got 'last'"):
        clip_tiny(pooling="last")
    with pytest.raises(ValueError, match="image_size = 32, got 5"):
        clip_tiny(patch_size=5)
    with pytest.raises(ValueError, match=r"no head attached for \['vqa'\]"):
        model(torch.rand(1, 3, 32, 32), tasks=["vqa"])
