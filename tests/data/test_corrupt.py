"""Corruption over every input form: who is hit, how hard, and what is left alone."""

import pytest
import torch

from polyfuse.data.batch import Batch, map_tensors
from polyfuse.data.corrupt import (
    TEST_CORRUPTIONS,
    InputScale,
    corrupt,
    corrupt_modality,
    fit_scales,
    input_form,
)

FORMS = ("image", "text", "audio", "tabular", "series", "vector")


def make_batch(n: int = 211, missing: float = 0.3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (n,), generator=g)
    mask = torch.arange(7) < lengths[:, None]
    heard = torch.arange(41) < (lengths * 5)[:, None]
    inputs = {
        "image": torch.randint(0, 256, (n, 3, 5, 5), generator=g).to(torch.uint8),
        "text": {"ids": (torch.randint(2, 97, (n, 7), generator=g) * mask).int(), "mask": mask},
        "audio": {
            "wave": (torch.randn(n, 41, generator=g) * 900 * heard).to(torch.int16),
            "length": lengths * 5,
        },
        "tabular": {
            "numeric": torch.randn(n, 3, generator=g),
            "numeric_mask": torch.rand(n, 3, generator=g) < 0.8,
            "categorical": torch.randint(0, 4, (n, 2), generator=g),
        },
        "series": {"values": torch.randn(n, 7, 2, generator=g) * mask[..., None], "mask": mask},
        "vector": torch.randn(n, 11, generator=g) * 5,
    }
    inputs["tabular"]["numeric"] *= inputs["tabular"]["numeric_mask"]
    present = torch.rand(n, len(FORMS), generator=g) >= missing
    for m, name in enumerate(FORMS):
        here = present[:, m]
        inputs[name] = map_tensors(
            {name: inputs[name]}, lambda t, here=here: t * here.view(-1, *[1] * (t.ndim - 1)).to(t.dtype)
        )[name]
    return Batch(FORMS, inputs, present, None, torch.randperm(n, generator=g) + 1000)


def parts(value: object) -> dict[str, torch.Tensor]:
    return value if isinstance(value, dict) else {"": value}


def changed(a: Batch, b: Batch, name: str) -> torch.Tensor:
    """(B,) bool: rows of one modality whose content differs."""
    out = torch.zeros(len(a), dtype=torch.bool)
    for key, x in parts(a.inputs[name]).items():
        out |= (x != parts(b.inputs[name])[key]).flatten(1).any(1) if x.ndim > 1 else x != parts(b.inputs[name])[key]
    return out


def test_every_form_is_known_and_others_are_refused() -> None:
    batch = make_batch()
    assert [input_form(batch.inputs[name]) for name in FORMS] == list(FORMS)
    with pytest.raises(ValueError, match=r"torch\.int64 \(2, 3\)"):
        input_form(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="got \\['words'\\]"):
        input_form({"words": torch.zeros(2)})


def test_only_a_share_of_the_present_rows_is_hit_and_nothing_is_flagged() -> None:
    batch = make_batch(4001)
    out = corrupt(batch, 0.15, 3, 1, scales=fit_scales(batch))
    assert out.present is batch.present
    for m, name in enumerate(FORMS):
        hit = changed(batch, out, name)
        assert not (hit & ~batch.present[:, m]).any()
        share = float(hit[batch.present[:, m]].float().mean())
        slack = 0.06 if name in ("text", "tabular") else 0.0  # weak noise may leave every id as it was
        assert 0.12 - slack < share < 0.18, (name, share)


def test_input_batch_is_left_alone_and_zero_rate_is_the_same_batch() -> None:
    batch = make_batch()
    before = map_tensors(batch.inputs, torch.clone)
    corrupt(batch, 1.0, 0, 0)
    for name in FORMS:
        for key, x in parts(batch.inputs[name]).items():
            assert torch.equal(x, parts(before[name])[key])
    assert corrupt(batch, 0.0, 0, 0) is batch


@pytest.mark.parametrize("name", FORMS)
def test_types_padding_and_missing_cells_survive_every_corruption(name: str) -> None:
    batch = make_batch()
    outs = [corrupt_modality(batch, name, kind, value) for kind, value in TEST_CORRUPTIONS]
    outs += [corrupt(batch, 1.0, 0, 0, kinds=("noise",)), corrupt(batch, 1.0, 0, 0, kinds=("swap",))]
    m = FORMS.index(name)
    for out in outs:
        for key, x in parts(batch.inputs[name]).items():
            y = parts(out.inputs[name])[key]
            assert y.dtype == x.dtype
            assert y.shape == x.shape
            assert torch.equal(y[~batch.present[:, m]], x[~batch.present[:, m]])
        value = out.inputs[name]
        if name == "text":
            assert not value["ids"][~value["mask"]].any()
            assert int(value["ids"].max()) < 97
        elif name == "audio":
            assert not value["wave"][torch.arange(41) >= value["length"][:, None]].any()
        elif name == "series":
            assert not value["values"][~value["mask"]].any()
        elif name == "tabular":
            assert not value["numeric"][~value["numeric_mask"]].any()
            assert int(value["categorical"].max()) < 4


def test_noise_is_in_units_of_the_training_std() -> None:
    batch = make_batch(2003, missing=0.0)
    scales = fit_scales(batch)
    for name, key, relative in (("vector", "", 0.05), ("audio", "wave", 0.1), ("series", "values", 0.1)):
        x, y = parts(batch.inputs[name])[key], parts(corrupt_modality(batch, name, "noise", 3.0).inputs[name])[key]
        where = (y != x).flatten() if name != "vector" else torch.ones(x.numel(), dtype=torch.bool)
        noise = (y.float() - x.float()).flatten()[where]
        expected = 3.0 * float(scales[name].std.mean())
        assert float(noise.std()) == pytest.approx(expected, rel=relative), name
    torch.testing.assert_close(scales["vector"].std, batch.inputs["vector"].std(0, correction=0))
    pixels = batch.inputs["image"].float().std(correction=0)
    torch.testing.assert_close(scales["image"].std, pixels)


def test_training_noise_levels_are_uniform_up_to_three() -> None:
    n, width = 4001, 61
    batch = Batch(("v",), {"v": torch.zeros(n, width)}, torch.ones(n, 1, dtype=torch.bool), None, torch.arange(n))
    out = corrupt(batch, 1.0, 0, 0, kinds=("noise",), scales={"v": InputScale(torch.full((width,), 2.0))})
    sigma = out.inputs["v"].std(dim=1) / 2.0
    quantiles = torch.quantile(sigma, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.3, 1.5, 2.7]), atol=0.12, rtol=0)


def test_noise_replaces_ids_with_the_share_of_its_power() -> None:
    n = 3001
    ids = torch.full((n, 5), 2, dtype=torch.int32)
    inputs = {"t": {"ids": ids, "mask": torch.ones(n, 5, dtype=torch.bool)}}
    batch = Batch(("t",), inputs, torch.ones(n, 1, dtype=torch.bool), None, torch.arange(n))
    out = corrupt_modality(batch, "t", "noise", 3.0, scales={"t": InputScale(torch.zeros(()), (1002,))})
    new = out.inputs["t"]["ids"]
    assert float((new != 2).float().mean()) == pytest.approx(0.9, abs=0.02)
    assert 2 <= int(new.min()) < int(new.max()) <= 1001


def test_half_of_the_hits_are_swaps_and_donors_have_the_modality() -> None:
    n = 4001
    present = torch.rand(n, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    vector = torch.arange(1, n + 1).float()[:, None].expand(-1, 3) * present
    batch = Batch(("v",), {"v": vector}, present, None, torch.arange(n) * 7)
    out = corrupt(batch, 1.0, 5, 2)
    new = out.inputs["v"][present[:, 0]]
    swapped = (new == new[:, :1]).all(dim=1)
    assert float(swapped.float().mean()) == pytest.approx(0.5, abs=0.04)
    donors = new[swapped][:, 0].long() - 1
    assert present[donors, 0].all()  # an absent row would have given zeros: index -1, or a row that is not there
    assert (donors != present[:, 0].nonzero()[:, 0][swapped]).all()  # never itself
    assert len(donors.unique()) > 0.5 * len(donors)


def test_a_lone_row_keeps_its_input_when_swapped() -> None:
    batch = Batch(("v",), {"v": torch.ones(3, 2)}, torch.tensor([[True], [False], [False]]), None, torch.arange(3))
    assert torch.equal(corrupt(batch, 1.0, 0, 0, kinds=("swap",)).inputs["v"], torch.ones(3, 2))


def test_noise_belongs_to_the_row_and_not_to_the_batch() -> None:
    batch, scales = make_batch(), fit_scales(make_batch())
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))[:50]
    whole = corrupt(batch, 0.5, 0, 3, kinds=("noise",), scales=scales).rows(order)
    part = corrupt(batch.rows(order), 0.5, 0, 3, kinds=("noise",), scales=scales)
    other = corrupt(batch.rows(order), 0.5, 0, 4, kinds=("noise",), scales=scales)
    for name in FORMS:
        assert not changed(whole, part, name).any()
        assert changed(whole, other, name).any()


def test_permuted_is_a_cycle_over_the_present_rows() -> None:
    batch = make_batch()
    out = corrupt_modality(batch, "vector", "permuted")
    here = batch.present[:, FORMS.index("vector")]
    old, new = batch.inputs["vector"][here], out.inputs["vector"][here]
    assert torch.equal(old[old[:, 0].argsort()], new[new[:, 0].argsort()])
    assert (old != new).any(1).all()


def test_stuck_shows_one_reading_everywhere() -> None:
    batch = make_batch()
    out = corrupt_modality(batch, "series", "stuck")
    here = batch.present[:, FORMS.index("series")]
    new = out.inputs["series"]
    assert (new["values"][here] == new["values"][here][:1]).all()
    assert (new["mask"][here] == new["mask"][here][:1]).all()
    assert (batch.inputs["series"]["values"][here] == new["values"][here][:1]).flatten(1).all(1).any()


def test_scaled() -> None:
    batch = make_batch()
    loud = corrupt_modality(batch, "image", "scaled", 4.0).inputs["image"]
    assert torch.equal(loud, (batch.inputs["image"].int() * 4).clamp(max=255).to(torch.uint8))
    none = corrupt_modality(batch, "tabular", "scaled", 0.0).inputs["tabular"]
    assert not none["numeric"].any()
    assert not none["categorical"].any()
    assert torch.equal(none["numeric_mask"], batch.inputs["tabular"]["numeric_mask"])


def test_scaled_text_is_said_again() -> None:
    ids = torch.tensor([[5, 6, 0, 0, 0, 0, 0]], dtype=torch.int32)
    batch = Batch(
        ("t",), {"t": {"ids": ids, "mask": ids > 0}}, torch.ones(1, 1, dtype=torch.bool), None, torch.arange(1)
    )
    for factor, expected in ((4.0, [5, 6, 5, 6, 5, 6, 5]), (0.5, [5, 0, 0, 0, 0, 0, 0]), (0.0, [0] * 7)):
        out = corrupt_modality(batch, "t", "scaled", factor).inputs["t"]
        assert out["ids"][0].tolist() == expected
        assert torch.equal(out["mask"], out["ids"] > 0)


def test_flagged_says_so() -> None:
    batch = make_batch()
    out = corrupt_modality(batch, "audio", "noise", 1.0, flagged=True)
    m = FORMS.index("audio")
    assert not out.present[:, m].any()
    others = [i for i in range(len(FORMS)) if i != m]
    assert torch.equal(out.present[:, others], batch.present[:, others])


def test_nothing_present_is_no_accident() -> None:
    batch = make_batch(13, missing=1.0)
    for name in FORMS:
        for kind, value in TEST_CORRUPTIONS:
            assert not changed(batch, corrupt_modality(batch, name, kind, value), name).any()
    corrupt(batch, 1.0, 0, 0)


def test_user_mistakes() -> None:
    batch = make_batch(13)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        corrupt(batch, 1.5, 0, 0)
    with pytest.raises(ValueError, match=r"got \['blur'\]"):
        corrupt(batch, 0.1, 0, 0, kinds=("blur",))
    with pytest.raises(ValueError, match="got 'smell'"):
        corrupt_modality(batch, "smell", "noise", 1.0)
    with pytest.raises(ValueError, match="got 'blur'"):
        corrupt_modality(batch, "image", "blur")
    with pytest.raises(ValueError, match="'scaled' needs a value of at least 0, got None"):
        corrupt_modality(batch, "image", "scaled")
