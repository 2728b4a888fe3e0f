"""Train a small model of every family on real pictures with names, and draw where the trained models look.

Run: ``OMP_NUM_THREADS=1 python docs/make_attention.py [--steps 400]`` (about ten minutes on one core). Writes
``docs/attention/*.png``; the pictures are emoji of the test part, which no model was trained on.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.data.keyed import permutation
from polyfuse.layers.attention_maps import capture_attention
from polyfuse.losses.contrastive import info_nce
from polyfuse.models.clip import clip_tiny
from polyfuse.models.mmbert import mmbert_tiny
from polyfuse.models.mmbt import mmbt_tiny
from polyfuse.models.mobileclip import mobileclip_tiny
from polyfuse.report.attention_figure import attention_matrix, attention_over_image
from polyfuse.tasks.batch import Collator, TaskBatch, TaskData
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES
from polyfuse.tasks.sources import load_source
from polyfuse.tasks.words import CLS, PAD, SEP, WordTokenizer

FOLDER = Path(__file__).parent / "attention"
SIDE, PATCH, LENGTH, BATCH, SHOWN = 64, 8, 16, 48, "dog"
Step = Callable[[int, np.ndarray], Tensor]


def train(modules: nn.Module, data: TaskData, step: Step, steps: int, lr: float = 1e-3) -> tuple[float, float]:
    """Mean loss of the first and the last twentieth of the steps."""
    optimiser = torch.optim.AdamW(modules.parameters(), lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    rows = data.rows("train")
    per_epoch = len(rows) // BATCH
    losses = []
    for number in range(steps):
        epoch, place = divmod(number, per_epoch)
        order = permutation(0, "attention", epoch, len(rows)).numpy()
        loss = step(number, rows[order[place * BATCH : (place + 1) * BATCH]])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    few = max(1, steps // 20)
    return float(np.mean(losses[:few])), float(np.mean(losses[-few:]))


class Pictures:
    """The rows, as every family wants them."""

    def __init__(self) -> None:
        self.data = load_source("emoji", side=SIDE)
        self.words = WordTokenizer.train([self.data.texts[row] for row in self.data.rows("train")], 2000)
        self.collate = Collator(self.data, self.words, max_length=LENGTH)
        self.captions = Collator(self.data, self.words, max_length=LENGTH, captions=True)
        test = self.data.rows("test")
        named = [row for row in test if SHOWN in self.data.texts[row].split()]
        self.shown = int((named or list(test))[0])
        self.image = self.data.images[self.data.image_of[self.shown]] if self.data.images is not None else None

    def pieces(self, batch: TaskBatch) -> list[str]:
        """The words of the one row, marks included."""
        names = {CLS: "[CLS]", SEP: "[SEP]"}
        return [names.get(i, self.words.decode([i]) or str(i)) for i in batch.text[0][batch.text_mask[0]].tolist()]


def of_tasks(
    pictures: Pictures, backbone: str, steps: int, **options: Any
) -> tuple[Tensor, list[str], tuple[float, float]]:
    """Words over patches in the last layer of a ``TaskModel``, trained to fill in, match and find names."""
    torch.manual_seed(0)
    model = TaskModel(
        vocab_size=len(pictures.words),
        backbone=backbone,
        backbone_options={"num_layers": 4, "num_heads": 4, "dropout": 0.0, **options},
        dim=64,
        max_length=LENGTH,
        side=SIDE,
        patch=PATCH,
    )
    made = {name: OBJECTIVES[name](model) for name in ("masked_words", "match", "contrast")}

    def step(number: int, rows: np.ndarray) -> Tensor:
        name = ("masked_words", "match", "contrast")[number % 3]
        batch = pictures.collate(rows)
        return made[name].loss(model, batch, made[name].draws(batch, (SIDE // PATCH) ** 2, 0, number))[0]

    losses = train(model, pictures.data, step, steps)
    model.eval()
    batch = pictures.collate(np.array([pictures.shown]))
    with torch.no_grad(), capture_attention(model) as maps:
        model.encode(batch)
    words = pictures.pieces(batch)
    return words_over_patches(maps, len(words), (SIDE // PATCH) ** 2), words, losses


def words_over_patches(maps: Mapping[str, Tensor], words: int, patches: int) -> Tensor:
    """The last map in which words read patches, ``(H, T, P)``: of two streams, of one with either side first."""
    for name, weights in reversed(list(maps.items())):
        _, _, queries, keys = weights.shape
        if (queries, keys) == (words, patches) or (queries, keys) == (words, patches + 1):
            return weights[0, :, :, keys - patches :]
        if queries == keys == words + patches:  # image before text by name in "early"; text first in BERT's family
            image_first = "strategy" in name or "model.towers" in name
            if image_first:
                return weights[0, :, patches:, :patches]
            return weights[0, :, :words, words:]
    raise SystemExit(
        f"no layer in which {words} words read {patches} patches: {[tuple(m.shape) for m in maps.values()]}"
    )


def of_captioner(pictures: Pictures, steps: int) -> tuple[Tensor, list[str], tuple[float, float]]:
    """What the decoder reads before each word of the picture's name, the words before it being given."""
    torch.manual_seed(0)
    options = {"fusion": "late", "num_layers": 2, "num_heads": 4, "dropout": 0.0}
    model = TaskModel(
        vocab_size=len(pictures.words), backbone_options=options, dim=64, max_length=LENGTH, side=SIDE, patch=PATCH
    )
    made = OBJECTIVES["caption"](model)
    losses = train(model, pictures.data, lambda number, rows: made.loss(model, pictures.captions(rows), {})[0], steps)
    model.eval()
    batch = pictures.captions(np.array([pictures.shown]))
    context, mask = model.context(batch)
    decoder: Any = model.heads["caption"]
    said = batch.target["caption"][:, : int((batch.target["caption"] != PAD).sum())]
    with torch.no_grad(), capture_attention(decoder) as maps:
        decoder(said[:, :-1], None, context, mask)
    weights = [m for name, m in maps.items() if name.endswith("context_attention")][-1]
    words = [pictures.words.decode([i]) or "[EOS]" for i in said[0, 1:].tolist()]
    return weights[0], words, losses


def of_towers(
    pictures: Pictures, build: Callable[..., Any], steps: int, **options: Any
) -> tuple[Any, tuple[float, float]]:
    """CLIP or MobileCLIP, trained to tell names; returns the maps of the shown picture and its text."""
    torch.manual_seed(0)
    vocabulary = len(pictures.words)
    model = build(**{"vocab_size": vocabulary + 1, "image_size": SIDE, "context_length": LENGTH, **options})
    zoom = model.config["image_size"] // SIDE

    def texts(batch: TaskBatch) -> Tensor:
        ids = F.pad(batch.text, (0, LENGTH - batch.text.shape[1]))
        end = batch.text_mask.sum(dim=1) - 1
        return ids.scatter(1, end[:, None], vocabulary)  # the end has the highest id, as in CLIP

    def large(batch: TaskBatch) -> Tensor:
        assert batch.image is not None  # noqa: S101 - emoji are pictures
        return batch.image.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)

    def step(number: int, rows: np.ndarray) -> Tensor:
        batch = pictures.collate(rows)
        encoded = model.encode(large(batch), texts(batch))
        return info_nce(
            encoded["image_embedding"], encoded["text_embedding"], model.scale().clamp(max=100), ids=batch.ids
        )

    losses = train(model, pictures.data, step, steps)
    batch = pictures.collate(np.array([pictures.shown]))
    with torch.no_grad():
        return model.eval()(large(batch), texts(batch), return_attention=True).attentions, losses


def of_medical(
    pictures: Pictures, build: Callable[..., Any], steps: int, **options: Any
) -> tuple[Any, Any, tuple[float, float]]:
    """MMBERT or MMBT, trained to fill in names."""
    torch.manual_seed(0)
    frame = {"cls_id": CLS, "sep_id": SEP, "vocab_size": len(pictures.words), "max_length": 32, "dropout": 0.1}
    model = build(**frame, dim=64, num_heads=4, resnet_width=16, **options).attach("mlm")

    def step(number: int, rows: np.ndarray) -> Tensor:
        batch = pictures.collate(rows)
        hidden = (torch.rand(batch.text.shape) < 0.3) & batch.text_mask & (batch.text != CLS) & (batch.text != SEP)
        logits = model(batch.image, batch.text.masked_fill(hidden, 4), batch.text_mask).mlm_logits
        each = F.cross_entropy(logits.flatten(0, 1), batch.text.flatten(), reduction="none") * hidden.flatten()
        return each.sum() / hidden.sum().clamp(min=1)

    losses = train(model, pictures.data, step, steps)
    batch = pictures.collate(np.array([pictures.shown]))
    with torch.no_grad():
        maps = model.eval()(batch.image, batch.text, batch.text_mask, return_attention=True).attentions
    return list(maps.values())[-1][0], batch, losses


def main() -> None:
    """All families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    steps, only = arguments.steps, [name for name in arguments.only.split(",") if name]
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    pictures = Pictures()
    grid = (SIDE // PATCH, SIDE // PATCH)
    print(f"shown: {pictures.data.texts[pictures.shown]} (test part)")

    def patches(name: str, title: str, found: tuple[Tensor, list[str], tuple[float, float]]) -> None:
        weights, words, losses = found
        figure = attention_over_image(weights, pictures.image, grid, words, title=title)
        finish(name, figure, losses)

    def finish(name: str, figure: Any, losses: tuple[float, float]) -> None:
        figure.savefig(FOLDER / f"{name}.png", dpi=80)
        print(f"{name:24} loss {losses[0]:.2f} to {losses[1]:.2f}, {time.perf_counter() - started:.0f} s", flush=True)

    def clip(
        name: str, title: str, build: Callable[..., Any], layer: str, first: int, side: int, **options: Any
    ) -> None:
        maps, losses = of_towers(pictures, build, steps, **options)
        weights = maps[layer][0]
        picked = weights[:, :1, 1:] if first else weights.mean(dim=1, keepdim=True)
        words = ["class token"] if first else ["mean over patches"]
        finish(name, attention_over_image(picked, pictures.image, (side, side), words, title=title), losses)

    tasks: dict[str, Callable[[], None]] = {
        "multimodal_transformer": lambda: patches(
            "multimodal_transformer",
            "MultimodalTransformer (co): words over patches",
            of_tasks(pictures, "multimodal", steps, fusion="co"),
        ),
        "uniter": lambda: patches("uniter", "UNITER: words over patches", of_tasks(pictures, "uniter", steps)),
        "vilbert": lambda: patches("vilbert", "ViLBERT: words over patches", of_tasks(pictures, "vilbert", steps)),
        "visual_bert": lambda: patches(
            "visual_bert", "VisualBERT: words over patches", of_tasks(pictures, "visual_bert", steps)
        ),
        "captioner": lambda: patches(
            "captioner", "Captioner: before each word of the name", of_captioner(pictures, steps)
        ),
        "clip": lambda: clip(
            "clip",
            "CLIP: the class token over patches",
            clip_tiny,
            "image.layers.1.attention",
            1,
            8,
            patch_size=8,
            image_dim=64,
            text_dim=48,
        ),
        "mobileclip": lambda: clip(
            "mobileclip",
            "MobileCLIP: last stage, what is read",
            mobileclip_tiny,
            "image.trunk.stages.3.blocks.0.attention",
            0,
            4,
            image_size=128,
        ),
        "mmbert": lambda: mmbert(),
        "mmbt": lambda: mmbt(),
    }

    def mmbert() -> None:
        weights, batch, losses = of_medical(pictures, mmbert_tiny, steps)
        words = pictures.pieces(batch)
        scales = [f"scale {number}" for number in range(1, 6)]
        rows = torch.cat([weights[:, :1], weights[:, -len(words) + 1 :]], dim=1)
        figure = attention_matrix(
            rows[:, :, 1:6],
            words,
            scales,
            title="MMBERT: words over the five visual tokens",
            key_name="stages of the ResNet, last first",
        )
        finish("mmbert", figure, losses)

    def mmbt() -> None:
        weights, batch, losses = of_medical(pictures, mmbt_tiny, steps, num_image_tokens=9)
        words = pictures.pieces(batch)[1:]
        picked = weights[:, -len(words) :, 1:10]
        figure = attention_over_image(picked, pictures.image, (3, 3), words, title="MMBT: words over the image tokens")
        finish("mmbt", figure, losses)

    for name, draw in tasks.items():
        if not only or name in only:
            started = time.perf_counter()
            draw()


if __name__ == "__main__":
    main()
