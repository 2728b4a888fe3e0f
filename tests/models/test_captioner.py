"""Captioner: parity with transformers' GPT-2 with cross-attention, masks, cache, and what it learns."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers.attention import Attention
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.models.bert import Bert
from polyfuse.models.captioner import Captioner, TokenEncoder, caption_loss, captioner_base, captioner_tiny
from polyfuse.models.captioner_step import DecoderStep
from polyfuse.models.vision_transformer import VisionTower

B, L, K, C = 3, 7, 5, 11


def built(seed: int = 0, *, spread: float = 6.0, **kwargs: object) -> Captioner:
    """A tiny captioner whose weights are large enough that every part changes the output."""
    torch.manual_seed(seed)
    model = captioner_tiny(context_dim=C, **kwargs)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.1 if weight.ndim == 1 else weight * spread)
            weight.mul_(4.0 if name == "positions.weight" else 1.0)  # else one word is said again and again
            if name.endswith("norm.weight"):
                weight.add_(1.0)
    return model.eval()


def varied() -> Captioner:
    """One whose greedy texts end at different places."""
    return built(1, spread=10.0, eos_id=66)


def inputs(seed: int = 1, batch: int = B) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (batch, L), generator=generator)
    mask = torch.rand(batch, K, generator=generator) < 0.6
    mask[:, 1] = True
    return ids, torch.randn(batch, K, C, generator=generator), mask


# Against transformers


def gpt2(dim: int = 32, vocabulary: int = 97):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=20,
        n_embd=dim,
        n_layer=2,
        n_head=2,
        add_cross_attention=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.copy_(torch.randn_like(weight) * (1.0 if "wpe" in name else 0.2))
            if ".ln_" in name and name.endswith("weight"):
                weight.add_(1.0)
    ours = Captioner(
        vocab_size=vocabulary,
        dim=dim,
        num_layers=2,
        num_heads=2,
        max_length=20,
        normalize_context=False,
        activation="gelu_tanh",
        dropout=0.0,
    ).eval()
    ours.load_state_dict(from_gpt2(theirs.state_dict()))
    return theirs, ours


def from_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their layers are (in, out) matrices; query, key and value are stacked as ours are."""
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_cross_attn": "context_norm",
        "crossattention.q_attn": "context_attention.query",
        "crossattention.c_attn": "context_attention.key_value",
        "crossattention.c_proj": "context_attention.out",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    found = {"words.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    for part in ("weight", "bias"):
        found[f"norm.{part}"] = state[f"transformer.ln_f.{part}"]
        for layer in range(2):
            for theirs, ours in names.items():
                value = state[f"transformer.h.{layer}.{theirs}.{part}"]
                found[f"layers.{layer}.{ours}.{part}"] = value.t() if value.ndim == 2 else value
    return found


def test_logits_and_gradients_are_those_of_gpt2_with_cross_attention() -> None:
    theirs, ours = gpt2()
    torch.manual_seed(1)
    ids, context = torch.randint(3, 97, (B, L)), torch.randn(B, K, 32, requires_grad=True)
    text_mask = torch.ones(B, L, dtype=torch.bool)
    text_mask[1, 5:] = False
    mask = torch.ones(B, K, dtype=torch.bool)
    mask[0, 3:] = False
    expected = theirs(
        ids, attention_mask=text_mask.long(), encoder_hidden_states=context, encoder_attention_mask=mask.long()
    ).logits
    found = ours(ids, text_mask, context, mask).logits
    torch.testing.assert_close(found[text_mask], expected[text_mask], atol=2e-5, rtol=1e-5)
    weigh = torch.randn(int(text_mask.sum()), 97)
    their_gradient = torch.autograd.grad((expected[text_mask] * weigh).sum(), [context, *theirs.parameters()])
    our_gradient = torch.autograd.grad((found[text_mask] * weigh).sum(), [context, *ours.parameters()])
    torch.testing.assert_close(our_gradient[0], their_gradient[0], atol=1e-4, rtol=1e-5)
    named = {name: g for (name, _), g in zip(theirs.named_parameters(), their_gradient[1:], strict=True)}
    for (name, _), gradient in zip(ours.named_parameters(), our_gradient[1:], strict=True):
        torch.testing.assert_close(gradient, from_gpt2(named)[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("eos", [2, 15])  # rows end at different places
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 1, "no_repeat_ngram": 2, "min_length": 5},
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 3, "length_penalty": -1.0, "no_repeat_ngram": 2, "min_length": 3},
    ],
)
def test_generation_gives_the_ids_of_transformers_generate(settings: dict, eos: int) -> None:
    theirs, ours = gpt2(vocabulary=23)
    torch.manual_seed(2)
    context = torch.randn(13, K, 32)
    expected = theirs.generate(
        torch.full((13, 1), 1),
        attention_mask=torch.ones(13, 1, dtype=torch.long),
        encoder_hidden_states=context,
        eos_token_id=eos,
        pad_token_id=3,  # with 0, which is false, it would pad with EOS
        max_new_tokens=12,
        do_sample=False,
        num_beams=settings["num_beams"],
        length_penalty=settings.get("length_penalty", 1.0),
        early_stopping=settings.get("early_stopping", False),
        no_repeat_ngram_size=settings.get("no_repeat_ngram", 0),
        min_new_tokens=settings.get("min_length"),
        return_dict_in_generate=True,
        output_scores=True,
    )
    method = "greedy" if settings["num_beams"] == 1 else "beam"
    found = ours.generate(context, method=method, max_length=12, eos_id=eos, pad_id=3, **settings)
    assert found.ids.tolist() == expected.sequences[:, 1:].tolist()
    if method == "beam":
        torch.testing.assert_close(found.scores, expected.sequences_scores, atol=1e-4, rtol=1e-5)
    assert len(found.lengths.unique()) > 1 or settings.get("length_penalty") == 2.0  # which wants every row long


# The cache


@pytest.mark.parametrize("norm_first", [True, False])
def test_cached_and_uncached_logits_agree_over_steps_and_beams(norm_first: bool) -> None:
    model = built(norm_first=norm_first)
    _, context, mask = inputs()
    states, mask = model.read_context(context, mask, None, batch=B)
    fast, slow = DecoderStep(model, states, mask, room=9), DecoderStep(model, states, mask, room=None)
    generator = torch.Generator().manual_seed(5)
    ids = torch.full((B, 1), 1)
    groups, beams = B, 1
    with torch.no_grad():
        for step in range(9):
            one, two = fast(ids), slow(ids)
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
            expected = model(
                ids,
                context=context[-groups:].repeat_interleave(beams, 0),
                context_mask=mask[-groups:].repeat_interleave(beams, 0),
            )
            torch.testing.assert_close(one, expected.logits[:, -1], atol=1e-5, rtol=1e-5)
            rows = torch.randint(beams, (groups, 4), generator=generator) + torch.arange(groups)[:, None] * beams
            left = None
            if step == 4:  # the first prompt has finished
                rows, left = rows[1:], torch.arange(1, groups)
                groups -= 1
            beams = 4
            new = torch.randint(97, (groups * beams, 1), generator=generator)
            ids = torch.cat([ids[rows.flatten()], new], dim=1)
            fast.reorder(rows.flatten(), left)
            slow.reorder(rows.flatten(), left)
    assert len(fast.caches[0].context.read()[0]) == 2  # held once per prompt, not per beam
    assert len(fast.caches[0].tokens.read()[0]) == 8


def test_rows_that_do_not_share_the_contexts_evenly_are_refused() -> None:
    layer = Attention(8, 2, context_dim=C)
    cache = KeyValueCache()
    layer(torch.zeros(2, 1, 8), torch.zeros(2, K, C), cache=cache)
    with pytest.raises(ValueError, match="must be a multiple of the 2 rows in the context's cache, got 3"):
        layer(torch.zeros(3, 2, 8), cache=cache)


def test_half_precision() -> None:
    model = built(dtype=torch.bfloat16)
    _, context, mask = inputs()
    for method in ("greedy", "beam", "nucleus"):
        out = model.generate(context.bfloat16(), mask, method=method, max_length=5)
        assert out.scores.dtype == torch.float32
        assert out.scores.isfinite().all()


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_generation_with_and_without_cache(method: str) -> None:
    model = varied()
    _, context, mask = inputs(batch=11)
    found = [
        model.generate(
            context,
            mask,
            method=method,
            use_cache=cached,
            max_length=12,
            generator=torch.Generator().manual_seed(0),
            early_stopping=True,
        )
        for cached in (True, False)
    ]
    assert torch.equal(found[0].ids, found[1].ids)
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=1e-4, rtol=1e-5)
    assert len(found[0].lengths.unique()) > 1


def test_scores_are_the_log_probabilities_of_the_ids() -> None:
    model = built()
    _, context, mask = inputs(batch=7)
    for method in ("greedy", "nucleus", "beam"):
        out = model.generate(context, mask, method=method, max_length=10, temperature=1.7, length_penalty=0.5)
        ids = torch.cat([torch.ones(7, 1, dtype=torch.long), out.ids], dim=1)
        log_p = model(ids[:, :-1], context=context, context_mask=mask).logits.log_softmax(-1)
        gained = log_p.gather(-1, out.ids[..., None])[..., 0]
        counted = torch.arange(out.ids.shape[1]) < out.lengths[:, None]
        total = (gained * counted).sum(1) / (out.lengths**0.5 if method == "beam" else 1)
        torch.testing.assert_close(out.scores, total, atol=1e-4, rtol=1e-4)


# Rows and masks


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_caption_does_not_depend_on_its_neighbours(method: str) -> None:
    model = varied()
    _, context, mask = inputs(batch=11)
    together = model.generate(context, mask, method=method, max_length=12)
    wider = torch.cat([context, torch.full((11, 4, C), math.nan)], dim=1)
    wider_mask = torch.cat([mask, torch.zeros(11, 4, dtype=torch.bool)], dim=1)
    for row in range(11):
        alone = model.generate(wider[row : row + 1], wider_mask[row : row + 1], method=method, max_length=12)
        length = int(alone.lengths)
        assert int(together.lengths[row]) == length
        assert torch.equal(alone.ids[0], together.ids[row, :length])
    assert len(together.lengths.unique()) > 1


def test_absent_context_reaches_neither_output_nor_gradient() -> None:
    model = built()
    ids, context, mask = inputs()
    mask[2] = False
    out = model(ids, context=context, context_mask=mask).logits
    broken = context.masked_fill(~mask[..., None], math.nan).requires_grad_()
    found = model(ids, context=broken, context_mask=mask).logits
    assert torch.equal(found, out)
    found.square().sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert not broken.grad[~mask].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not torch.allclose(model(ids, context=context).logits, out)
    assert torch.equal(model.generate(broken.detach(), mask).ids, model.generate(context, mask).ids)


def test_without_context_it_is_a_language_model() -> None:
    model = built()
    ids, context, _ = inputs()
    alone = model(ids).logits
    nothing = torch.zeros(B, K, dtype=torch.bool)
    some = torch.tensor([True, False, True])
    torch.testing.assert_close(model(ids, context=context, context_mask=nothing).logits, alone)
    for present in (some, some[:, None]):
        mixed = model(ids, context=context, present=present).logits
        torch.testing.assert_close(mixed[1], alone[1])
        torch.testing.assert_close(mixed[some], model(ids, context=context).logits[some])
    texts = model.generate(context, present=some, max_length=6)
    assert torch.equal(texts.ids[1, : int(texts.lengths[1])], model.generate(batch_size=1, max_length=6).ids[0])
    assert not torch.equal(texts.ids, model.generate(context, max_length=6).ids)


def test_no_token_sees_a_later_one_and_padding_may_stand_on_either_side() -> None:
    model = built()
    ids, context, mask = inputs()
    out = model(ids, context=context, context_mask=mask).logits
    other = ids.clone()
    other[:, 4:] = 5
    torch.testing.assert_close(model(other, context=context, context_mask=mask).logits[:, :4], out[:, :4])
    for side in ("left", "right"):
        pad = torch.full((B, 2), 96)
        there, gone = torch.ones(B, L, dtype=torch.bool), torch.zeros(B, 2, dtype=torch.bool)
        wide = torch.cat([pad, ids] if side == "left" else [ids, pad], dim=1)
        text_mask = torch.cat([gone, there] if side == "left" else [there, gone], dim=1)
        found = model(wide, text_mask, context, mask).logits
        assert found.isfinite().all()
        torch.testing.assert_close(found[text_mask].view_as(out), out, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_gone_on_from() -> None:
    model = built()
    _, context, mask = inputs()
    whole = model.generate(context, mask, max_length=8, eos_id=96)
    prompt = torch.cat([torch.ones(B, 1, dtype=torch.long), whole.ids[:, :3]], dim=1)
    rest = model.generate(context, mask, prompt=prompt, max_length=5, eos_id=96)
    assert torch.equal(rest.ids, whole.ids[:, 3:])
    assert model.generate(prompt=prompt, eos_id=96).ids.shape[1] <= 17  # 20 positions, the last token is not read


# What it is made of


def test_every_parameter_trains_and_modes_are_kept() -> None:
    frozen = nn.Linear(C, C).eval().requires_grad_(False)
    model = built(dropout=0.2, encoder=TokenEncoder(frozen, lambda m, x: m(x))).train()
    frozen.eval()
    ids, context, mask = inputs()
    states, _ = model.encode(context)
    model.generate(states, max_length=3)
    assert model.training
    assert model.layers[0].training
    assert not frozen.training
    assert torch.equal(model.generate(states, max_length=5).ids, model.generate(states, max_length=5).ids)
    caption_loss(model(ids, context=states, context_mask=mask).logits, ids).backward()
    for name, weight in model.named_parameters():
        if not name.startswith("encoder."):
            assert weight.grad is not None, name
            # The softmax is blind to what the keys' bias adds to all scores of a query alike.
            assert weight.grad.any(), name


def test_attention_maps() -> None:
    model = built()
    ids, context, mask = inputs()
    found = model(ids, context=context, context_mask=mask, return_attention=True)
    assert list(found.attentions) == [f"layers.{i}.{part}attention" for i in (0, 1) for part in ("", "context_")]
    seen = found.attentions["layers.1.context_attention"]
    assert seen.shape == (B, 2, L, K)
    torch.testing.assert_close(seen.sum(-1), torch.ones(B, 2, L))
    assert not seen.transpose(1, 3)[~mask].any()
    assert not found.attentions["layers.0.attention"].triu(1).any()
    assert model(ids, context=context).attentions is None


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_read_back(tied: bool, tmp_path: Path) -> None:
    model = built(tied_output=tied)
    ids, context, mask = inputs()
    model.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(again(ids, context=context, context_mask=mask).logits, model(ids, None, context, mask).logits)
    assert ("output.weight" in model.state_dict()) is not tied


def test_saved_with_its_encoder(tmp_path: Path) -> None:
    def made() -> TokenEncoder:
        return TokenEncoder(nn.Linear(3, C), lambda model, x: model(x))

    model = built(encoder=made())
    model.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path, encoder=made())
    pixels = torch.rand(2, K, 3)
    assert torch.equal(again.encode(pixels)[0], model.encode(pixels)[0])
    with pytest.raises(ValueError, match="was saved with its encoder"):
        Captioner.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "Bert"}')
    with pytest.raises(ValueError, match="holds a 'Bert', expected a 'Captioner'"):
        Captioner.from_pretrained(tmp_path)


def test_any_model_is_an_encoder() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 50, (B, K)), torch.ones(B, K, dtype=torch.bool)
    text = Bert(vocab_size=50, dim=C - 1, num_layers=1, num_heads=2, hidden_dim=12, max_length=16).eval()
    reader = captioner_tiny(context_dim=10, encoder=text).eval()  # has encode(...) -> (B, K, C)
    assert reader.generate(*reader.encode(ids, text_mask=mask), max_length=4).ids.shape[0] == B
    tower = VisionTower(image_size=8, patch_size=4, dim=16, num_layers=1, num_heads=2, out_dim=5).eval()
    viewer = captioner_tiny(context_dim=16, encoder=TokenEncoder(tower, lambda m, x: m.sequence(x))).eval()
    states, none = viewer.encode(torch.rand(B, 3, 8, 8))
    assert states.shape == (B, 5, 16)
    assert none is None
    assert viewer(ids, context=states).logits.shape == (B, K, 97)


def test_sizes() -> None:
    with torch.device("meta"):
        base = captioner_base()
        small = captioner_base(num_layers=1, tied_output=False, normalize_context=False)

    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    d, c, v = 512, 768, 30522
    attention = 3 * (d * d + d) + d * d + d  # query, key, value; out
    context = 2 * (d * d + d) + 2 * (c * d + d)
    layer = attention + context + (d * 4 * d + 4 * d) + (4 * d * d + d) + 3 * 2 * d
    assert count(base) == v * d + 128 * d + 6 * layer + 2 * d + 2 * c == 42_492_416
    assert count(small) == 2 * v * d + 128 * d + layer + 2 * d


def test_it_exports() -> None:
    model = built()
    ids, context, mask = inputs()
    program = torch.export.export(model, (ids, None, context, mask))
    torch.testing.assert_close(
        program.module()(ids, None, context, mask).logits, model(ids, None, context, mask).logits
    )


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"eos_id": 97}, "eos_id must be in the vocabulary, 0 to 96, got 97"),
        ({"bos_id": -1}, "bos_id must be in the vocabulary, 0 to 96, got -1"),
        ({"num_heads": 5}, "num_heads must divide the width 32, got 5"),
        ({"activation": "swish"}, "activation must be one of .*got 'swish'"),
    ],
)
def test_bad_sizes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        captioner_tiny(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_ids": torch.ones(B, 21, dtype=torch.long)}, "at most 20 tokens, got 21"),
        ({"input_ids": torch.ones(B, L)}, r"input_ids must be integers of shape \(B, L\), got float32 \(3, 7\)"),
        ({"text_mask": torch.ones(B, L)}, r"text_mask must be bool of shape \(3, 7\), got float32 \(3, 7\)"),
        ({"context": torch.ones(B, K, C + 1)}, r"\(B, K, C\) = \(3, K, 11\), got \(3, 5, 12\)"),
        ({"context": torch.ones(1, K, C)}, r"got \(1, 5, 11\)"),
        ({"context": torch.ones(B, 0, C)}, r"got \(3, 0, 11\)"),
        ({"context_mask": torch.ones(B, K + 1, dtype=torch.bool)}, r"context_mask must be bool of shape \(3, 5\)"),
        ({"present": torch.ones(B, K, dtype=torch.bool)}, r"present must be bool of shape \(B,\) = \(3,\), got bool"),
        ({"tasks": ["vqa"]}, r"no head attached for \['vqa'\]"),
    ],
)
def test_bad_inputs_are_refused(wrong: dict, message: str) -> None:
    ids, context, mask = inputs()
    with pytest.raises(ValueError, match=message):
        built()(**{"input_ids": ids, "context": context, "context_mask": mask, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "best"}, "method must be one of greedy, beam, nucleus, got 'best'"),
        ({"max_length": 21}, r"max_length must be at most 20 \(20 positions, a prompt of 1\), got 21"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"eos_id": 97}, "eos_id must be in the vocabulary, 0 to 96, got 97"),
        ({"bos_id": 97}, "bos_id must be in the vocabulary, 0 to 96, got 97"),
        ({"pad_id": -1}, "pad_id must be in the vocabulary, 0 to 96, got -1"),
        ({"method": "beam", "num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"method": "nucleus", "top_p": 1.01}, r"top_p must be in \(0, 1\], got 1.01"),
        ({"prompt": torch.ones(B, 21, dtype=torch.long)}, "a prompt may have at most 20 tokens, got 21"),
        ({"prompt": torch.ones(B + 1, 2, dtype=torch.long)}, r"context must have shape \(B, K, C\) = \(4, K, 11\)"),
        ({"context": None}, "how many texts"),
    ],
)
def test_bad_requests_are_refused(wrong: dict, message: str) -> None:
    _, context, _ = inputs()
    with pytest.raises(ValueError, match=message):
        built().generate(**{"context": context, **wrong})


def test_bad_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="this captioner has no encoder"):
        built().encode(torch.zeros(1))
    for found, message in (
        (torch.zeros(2, C), r"got float32 \(2, 11\)"),
        ((torch.zeros(2, K, C), torch.zeros(2, K, C)), r"got \(float32 \(2, 5, 11\), float32 \(2, 5, 11\)\)"),
        ({"image": torch.zeros(2)}, "got dict"),
    ):
        with pytest.raises(ValueError, match=message):
            built(encoder=TokenEncoder(nn.Identity(), lambda model, found=found: found)).encode()


def test_bad_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must be \(B, L, V\) with \(B, L\) = \(3, 7\), got \(3, 6, 9\)"):
        caption_loss(torch.zeros(B, 6, 9), torch.zeros(B, L, dtype=torch.long))


def test_the_loss_counts_present_tokens_after_the_first() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(B, L, 13), torch.randint(13, (B, L))
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[0, 4:] = mask[1, :3] = False
    each = [
        -float(logits[row, step - 1].log_softmax(-1)[ids[row, step]])
        for row in range(B)
        for step in range(1, L)
        if mask[row, step] and mask[row, step - 1]
    ]
    assert float(caption_loss(logits, ids, mask)) == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert float(caption_loss(logits, ids, torch.zeros_like(mask))) == 0.0


# It learns


def test_it_learns_to_name_emoji() -> None:
    """Pixels of real emoji, in patches, to their English names: after seconds it says the names it was shown."""
    from polyfuse.data.emoji import load_emoji

    tables = load_emoji(missing_rate=0.0)
    chosen = [i for i, row in enumerate(tables.rows["train"]) if len(row["name"].split()) in (2, 3)][::29][:24]
    names = [tables.rows["train"][i]["name"].split() for i in chosen]
    words = ["", "<s>", "</s>", *sorted({word for name in names for word in name})]
    ids = torch.zeros(len(names), 5, dtype=torch.long)
    for row, name in enumerate(names):
        ids[row, : len(name) + 2] = torch.tensor([1, *(words.index(word) for word in name), 2])
    pixels = tables.train.inputs["picture"][chosen].float() / 127.5 - 1.0
    patches = nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2)  # (24, 16, 192)
    torch.manual_seed(0)
    model = captioner_tiny(vocab_size=len(words), context_dim=192, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(200):
        loss = caption_loss(model(ids, ids > 0, patches).logits, ids, ids > 0)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(len(words)), abs=0.5)
    for method in ("greedy", "beam"):
        said = model.eval().generate(patches, method=method, max_length=4)
        assert torch.equal(nn.functional.pad(said.ids, (0, 4 - said.ids.shape[1])), ids[:, 1:])
    blind = model.generate(patches, present=torch.zeros(24, dtype=torch.bool), max_length=4)
    assert len(blind.ids.unique(dim=0)) == 1  # without a picture they are all alike


def test_beam_search_is_at_least_as_good_as_greedy_on_average() -> None:
    model = built(spread=3.0)
    _, context, mask = inputs(batch=13)
    greedy = model.generate(context, mask, max_length=8).scores
    beams = model.generate(context, mask, max_length=8, method="beam", num_beams=5, length_penalty=0.0).scores
    assert beams.mean() > greedy.mean()
