"""Backbones with an image tower of their own are the models they are named after, and do not depend on the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polyfuse.models.clip import CLIP
from polyfuse.models.mmbert import MMBERT
from polyfuse.models.mmbt import MMBT
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.words import CLS, SEP

SIZES = {"clip": (16, 8, 16), "mobileclip": (64, 32, 64), "mmbert": (32, 8, 16), "mmbt": (32, 16, 16)}


def build(backbone: str, **options: object) -> TaskModel:
    torch.manual_seed(1)
    side, patch, dim = SIZES[backbone]
    made = TaskModel(
        vocab_size=20,
        backbone=backbone,
        backbone_options={"num_layers": 2, "num_heads": 2, **options},
        dim=dim,
        max_length=9,
        side=side,
        patch=patch,
        embed_dim=6,
    )
    return made.attach("contrast").eval()


def make_batch(backbone: str) -> TaskBatch:
    generator = torch.Generator().manual_seed(2)
    side = SIZES[backbone][0]
    text = torch.tensor([[CLS, 9, 8, 11, SEP], [CLS, 7, SEP, 0, 0], [CLS, 12, 12, SEP, 0]])
    number = torch.arange(3)
    image = torch.rand(3, 3, side, side, generator=generator)
    return TaskBatch(number, number, text, text != 0, torch.ones(3, 2, dtype=torch.bool), image)


def take(target: torch.nn.Module, source: torch.nn.Module, places: dict[str, str]) -> None:
    """Copy every parameter and statistic of ``target`` from ``source``, under other names."""
    have: dict[str, Tensor] = source.state_dict()
    found = {}
    for name, value in target.state_dict().items():
        start = next((start for start in places if name.startswith(start)), None)
        found[name] = value if start is None else have[places[start] + name.removeprefix(start)]
    target.load_state_dict(found)


def test_clip_embeds_as_clip_does() -> None:
    model, batch = build("clip"), make_batch("clip")
    sizes = {"image_size": 16, "patch_size": 8, "image_dim": 16, "image_layers": 2, "image_heads": 2}
    sizes |= {"vocab_size": 20, "context_length": 9, "text_dim": 16, "text_layers": 2, "text_heads": 2}
    clip = CLIP(**sizes, embed_dim=6, pooling="eos", eos_id=SEP).eval()
    places = {f"{side}.projection.": f"heads.contrast.project.{side}." for side in ("image", "text")}
    take(clip, model, places | {"image.": "stem.tower.", "text.": "backbone.text."})
    assert batch.image is not None
    with torch.no_grad():
        torch.testing.assert_close(model.embed_image(batch), clip.encode_image(2 * batch.image - 1))
        torch.testing.assert_close(model.embed_text(batch), clip.encode_text(batch.text))


def test_mmbert_and_mmbt_pool_as_themselves() -> None:
    same = {"vocab_size": 20, "dim": 16, "num_layers": 2, "num_heads": 2, "depths": (1, 1, 1, 1), "resnet_width": 16}
    same |= {"cls_id": CLS, "sep_id": SEP}
    mmbert = MMBERT(**same, max_length=15, positions=15).eval()
    mmbt = MMBT(**same, hidden_dim=64, max_length=9, num_image_tokens=4).eval()
    for name, whole in (("mmbert", mmbert), ("mmbt", mmbt)):
        model, batch = build(name), make_batch(name)
        places = {"resnet.": "stem.resnet.", "visual.": "stem.visual.", "": "backbone.model."}
        take(whole, model, places)
        assert batch.image is not None
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (whole.IMAGE_MEAN, whole.IMAGE_STD))
        with torch.no_grad():
            wanted = whole((batch.image - mean) / std, batch.text, batch.text_mask)
            states = model.encode(batch).states
        torch.testing.assert_close(states.pooled, wanted.pooled)
        torch.testing.assert_close(states.image, wanted.image)
        torch.testing.assert_close(states.text, wanted.text)


@pytest.mark.parametrize("backbone", sorted(SIZES))
def test_no_row_depends_on_its_batch(backbone: str) -> None:
    model, batch = build(backbone), make_batch(backbone)
    alone = TaskBatch(
        batch.ids[1:2],
        batch.keys[1:2],
        batch.text[1:2, :3],
        batch.text_mask[1:2, :3],
        batch.present[1:2],
        batch.image[1:2],  # type: ignore[index]
    )
    with torch.no_grad():
        together, single = model.encode(batch).states, model.encode(alone).states
    torch.testing.assert_close(together.pooled[1:2], single.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.text[1:2, :3], single.text, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "options"), [("mmbt", {"num_image_tokens": 1}), ("mmbert", {"num_visual": 1}), ("mmbt", {})]
)
def test_a_text_alone_is_read_as_one_whose_picture_is_absent(backbone: str, options: dict[str, int]) -> None:
    model, batch = build(backbone, **options), make_batch(backbone)
    with torch.no_grad():
        absent = model.contrast(model.encode(batch.without("image")).states.pooled, "text")
        torch.testing.assert_close(model.embed_text(batch), absent)


@pytest.mark.parametrize("backbone", ["clip", "mobileclip", "mmbt"])
def test_hidden_cells_do_not_leak(backbone: str) -> None:
    model, batch = build(backbone), make_batch(backbone)
    assert model.stem.grid == 2
    hide = torch.tensor([[True, False, False, True]] * 3)
    assert batch.image is not None
    with torch.no_grad():
        first = model.encode(batch, hide=hide).states.image
        side = SIZES[backbone][0] // 2
        cells = hide.view(-1, 1, 2, 2).repeat_interleave(side, 2).repeat_interleave(side, 3)
        batch.image[cells.expand_as(batch.image)] = 0.123
        torch.testing.assert_close(model.encode(batch, hide=hide).states.image, first)


@pytest.mark.parametrize(
    ("backbone", "changes", "told"),
    [
        ("clip", {"region_dim": 5}, "looks at pixels itself"),
        ("mobileclip", {"patch": 8}, "patch=32"),
        ("mobileclip", {"dim": 32, "patch": 32}, "multiple of 64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(backbone: str, changes: dict[str, int], told: str) -> None:
    sizes = {"dim": 64, "side": 64, **changes}
    with pytest.raises(ValueError, match=told):
        TaskModel(vocab_size=20, backbone=backbone, max_length=9, **sizes)


def test_boxes_tell_cells_from_the_whole() -> None:
    model, batch = build("clip"), make_batch("clip")
    with torch.no_grad():
        boxes = model.stem(batch).boxes[0].numpy()
    np.testing.assert_allclose(boxes[[0, 3, 4]], [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
