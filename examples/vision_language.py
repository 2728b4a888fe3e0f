"""Drop AECF into somebody else's vision-language model: FLAVA of transformers, small, from scratch, on real emoji.

Run: ``python examples/vision_language.py`` (pip install 'polyfuse[workbench,hf]'). ``--smoke``: one epoch, seconds.
"""
# ruff: noqa: D101, D102, D103

import sys

import torch
import torch.nn.functional as F
from torch import nn
from transformers import FlavaConfig, FlavaModel

from polyfuse import FUSIONS
from polyfuse.calibrate import MaskTemperature
from polyfuse.data.emoji import load_emoji
from polyfuse.evaluate.metrics import accuracy, ece, probabilities

EPOCHS, BATCH, WIDTH, LENGTH = (1 if "--smoke" in sys.argv else 12), 64, 64, 24
CASES = {"complete": (True, True), "picture missing": (False, True), "name missing": (True, False)}


def flava(words):
    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH}
    size["hidden_dropout_prob"] = 0.2
    image, text = {**size, "image_size": 32, "patch_size": 8}, {**size, "vocab_size": words}
    return FlavaModel(FlavaConfig(image_config=image, text_config=text, multimodal_config=size, hidden_size=WIDTH))


class Before(nn.Module):
    def __init__(self, words, classes):
        super().__init__()
        self.flava = flava(words)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, inputs, present):
        out = self.flava(**inputs)
        return self.head(out.multimodal_embeddings[:, 0])  # FLAVA's own fusion: a transformer over all tokens


class After(nn.Module):
    def __init__(self, words, classes):
        super().__init__()
        self.flava = flava(words)
        self.fusion = FUSIONS["aecf"](("picture", "name"), WIDTH, policy="uniform", target_rate=0.4)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, inputs, present):
        out = self.flava(**inputs, skip_multimodal_encoder=True)
        seen = {"picture": out.image_embeddings[:, 0], "name": out.text_embeddings[:, 0]}
        return self.head(self.fusion(seen, present).fused)


def inputs_of(rows, present, start):
    """What FLAVA takes: a missing picture is grey, a missing name is empty (the start token alone)."""
    ids = F.pad(rows.inputs["name"]["ids"][:, : LENGTH - 1].long() * present[:, 1:], (1, 0), value=start)
    pixels = (rows.inputs["picture"] / 127.5 - 1) * present[:, :1, None, None]
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids > 0).long()}


def train(model, rows, start):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(rows)).split(BATCH):
            batch, here = rows.rows(index), rows.present[index, :2]
            optimiser.zero_grad()
            F.cross_entropy(model(inputs_of(batch, here, start), here), batch.target).backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def answers(model, rows, start):
    """Logits of every row in every case, (3, N, C), and who was present, (3, N, 2)."""
    present = torch.tensor(list(CASES.values()))[:, None].expand(-1, len(rows), -1)
    return torch.stack([model(inputs_of(rows, here, start), here) for here in present]).numpy(), present.numpy()


def main():
    torch.set_num_threads(1)
    data = load_emoji(missing_rate=0.0)
    start, target = data.specs["name"].options["vocab_size"], data.test.target.numpy()
    print(f"{'':24} accuracy %  ECE    ECE with temperature")
    for arm in (Before, After):
        torch.manual_seed(0)
        model = train(arm(start + 1, len(data.target.classes)), data.train, start)
        z, present = answers(model, data.validation, start)
        cases = slice(3 if arm is After else 1)  # before: one temperature, fitted on complete rows
        valid, masks = present[cases].any(axis=2), list(CASES.values())[cases]
        temperature = MaskTemperature.fit("classification", z[cases], data.validation.target, masks, valid)
        for case, z, here in zip(CASES, *answers(model, data.test, start), strict=True):
            raw, scaled = (probabilities("classification", x) for x in (z, temperature.apply(z, here)))
            scores = f"{100 * accuracy(raw, target):9.1f}   {ece(raw, target):.3f}  {ece(scaled, target):.3f}"
            print(f"{arm.__name__.lower():7} {case:16} {scores}", flush=True)


if __name__ == "__main__":
    main()
