"""MobileCLIP beside timm and open_clip, live, at full size: `make parity` prints the differences and fails above 1e-5.

Runs in the second environment (constraints-parity.txt). Weights come from the tensors' names (hashed.py).
"""

import copy
import sys
from collections.abc import Iterator

import hashed
import oracles
import torch
from open_clip.convert import convert_state_dict
from timm.models.fastvit import checkpoint_filter_fn
from timm.utils import reparameterize_model
from torch import Tensor, nn

from polyfuse.models.mobileclip import MobileCLIP, mobileclip_s0

LIMIT = 1e-5
Row = tuple[str, str, float]


def most(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one.detach() - other.detach()).abs().max())


def filled(model: nn.Module) -> nn.Module:
    model.load_state_dict(hashed.weights(model.state_dict()))
    return model.eval()


def outputs(name: str, oracle: nn.Module, ours: MobileCLIP, side: int) -> Iterator[Row]:
    images, ids = hashed.images(2, side), hashed.texts((5, 9, 77), 77, 49408)
    with torch.no_grad():
        image, text = oracle.encode_image(images, normalize=True), oracle.encode_text(ids, normalize=True)
        found = ours(images, ids)
        yield name, "image embedding", most(found.image_embedding, image)
        yield name, "text embedding", most(found.text_embedding, text)
        logits = oracle.logit_scale.exp().clamp(max=100) * image @ text.t()
        yield name, "logits, over their size", most(found.logits_per_image, logits) / float(logits.abs().max())


def gradients(name: str, oracle: nn.Module, ours: MobileCLIP) -> Iterator[Row]:
    """In training (batch statistics), relative to the largest gradient of each tensor.

    In double precision: sixty batch norms over a few pixels each magnify what single precision rounds (1e-3).
    """
    images, ids = hashed.images(3, 128).double(), hashed.texts((5, 9, 77), 77, 49408)
    oracle, ours = copy.deepcopy(oracle).double().train(), copy.deepcopy(ours).double().train()
    for image, text in (
        (oracle.encode_image(images, normalize=True), oracle.encode_text(ids, normalize=True)),
        (ours.encode_image(images), ours.encode_text(ids)),
    ):
        probe = hashed.hashed("gradient", image.shape)
        ((image * probe).sum() + (text * probe).sum()).backward()
    with torch.no_grad():  # gradients in the place of the weights: conversion carries them to the oracle's names
        for parameter in ours.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    found, worst = ours.to_original("open_clip"), {"image": 0.0, "text": 0.0}
    for key, parameter in oracle.named_parameters():
        if parameter.grad is None:  # logit_scale
            continue
        tower = "image" if key.startswith("visual") else "text"
        size = float(parameter.grad.abs().max())
        worst[tower] = max(worst[tower], most(found[key], parameter.grad) / max(size, 1e-9))
    for tower, value in worst.items():
        yield name, f"gradients of the {tower} tower", value


def published(name: str) -> Iterator[Row]:
    oracle = filled(oracles.full(name))
    ours = MobileCLIP.from_original(oracle.state_dict(), name)
    yield from outputs(name, oracle, ours, 256)
    yield from gradients(name, oracle, ours)
    folded = copy.deepcopy(oracle)
    folded.visual.trunk = reparameterize_model(folded.visual.trunk)
    fused = copy.deepcopy(ours).reparameterize()
    yield from outputs(f"{name} reparameterised", folded, fused, 256)
    yield from outputs(f"{name} reparameterised by timm", folded, MobileCLIP.from_original(folded.state_dict()), 256)
    yield from apple_names(name, oracle)


def apple_names(name: str, oracle: nn.Module) -> Iterator[Row]:
    """open_clip converts Apple's names to its own: applied to what we write as Apple's, it must give what we read."""
    head = "visual.trunk.head.bias" if name.endswith("B") else "visual.trunk.head.fc.bias"
    state = {**oracle.state_dict(), head: torch.zeros(512)}
    ours = MobileCLIP.from_original(state, name)
    converted = convert_state_dict(oracle, ours.to_original("apple"))
    same = set(converted) == set(state) and all(torch.equal(converted[key], value) for key, value in state.items())
    yield name, "Apple's names through open_clip", 0.0 if same else float("nan")


def vit() -> Iterator[Row]:
    oracle = filled(oracles.full("MobileCLIP-B"))
    state = oracle.state_dict()
    yield from outputs("MobileCLIP-B, timm's stem", oracle, MobileCLIP.from_original(state, vit_definition="timm"), 224)
    oracle.visual.trunk = oracles.define(oracle.visual.trunk, "apple")
    ours = MobileCLIP.from_original(state, "mobileclip_b")
    yield from outputs("MobileCLIP-B, Apple's stem", oracle, ours, 224)
    yield from apple_names("MobileCLIP-B", oracle)


def s0() -> Iterator[Row]:
    """open_clip has no S0: its image tower against timm's, through Apple's names."""
    with torch.device("meta"):
        names = mobileclip_s0().to_original("apple")
    state = hashed.weights(names)
    ours, oracle = MobileCLIP.from_original(state), oracles.s0_image().eval()
    oracle.load_state_dict(checkpoint_filter_fn(state, oracle))
    images = hashed.images(2, 256)
    with torch.no_grad():
        expected = nn.functional.normalize(oracle(images), dim=-1)
        yield "MobileCLIP-S0", "image embedding", most(ours.encode_image(images), expected)
        ids = hashed.texts((5, 9, 77), 77, 49408)
        before = ours.encode_text(ids)
        ours.reparameterize()
        yield "MobileCLIP-S0 reparameterised", "image embedding", most(ours.encode_image(images), expected)
        yield (
            "MobileCLIP-S0 reparameterised",
            "text embedding, against ours before",
            most(ours.encode_text(ids), before),
        )


def main() -> int:
    torch.manual_seed(0)
    failed = 0
    for rows in (s0(), published("MobileCLIP-S1"), published("MobileCLIP-S2"), vit()):
        for model, what, difference in rows:
            fine = difference <= LIMIT  # not for nan
            failed += not fine
            print(f"{'' if fine else 'FAILED '}{model:<40} {what:<36} {difference:.1e}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
