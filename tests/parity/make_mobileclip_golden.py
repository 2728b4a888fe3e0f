"""Golden numbers of MobileCLIP from timm and open_clip: `make parity-golden` writes mobileclip_golden.json.

Runs in the second environment (constraints-parity.txt). Weights come from the tensors' names (hashed.py).
"""

import json
from pathlib import Path
from typing import Any

import hashed
import open_clip
import oracles
import timm
import torch

KEPT = 24  # numbers of an embedding


def rounded(value: torch.Tensor) -> list[Any]:
    return [[round(float(x), 8) for x in row[:KEPT]] for row in value.detach()]


def filled(model: torch.nn.Module, zero: tuple[str, ...] = ()) -> torch.nn.Module:
    model.load_state_dict(hashed.weights(model.state_dict(), zero))
    return model.eval()


def forward(model: torch.nn.Module, side: int, context: int, vocab: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    with torch.no_grad():
        return {
            "keys": hashed.keys_digest(model.state_dict()),
            "image": rounded(model.encode_image(hashed.images(2, side), normalize=True)),
            "text": rounded(model.encode_text(hashed.texts(lengths, context, vocab), normalize=True)),
        }


def training(model: torch.nn.Module, side: int) -> dict[str, Any]:
    """The image tower in training: the embedding, every gradient, the running statistics afterwards."""
    trunk = model.visual.trunk.train()
    out = trunk(hashed.images(3, side))
    (out * hashed.hashed("gradient", out.shape)).sum().backward()
    statistics = {k: v for k, v in trunk.state_dict().items() if "running" in k}
    return {
        "image": rounded(out),
        "gradients": {k: hashed.probe(k, p.grad) for k, p in trunk.named_parameters()},
        "statistics": {k: hashed.probe(k, v) for k, v in statistics.items()},
    }


def main() -> None:
    torch.manual_seed(0)
    lengths = (4, 7, 13)
    golden: dict[str, Any] = {
        "made with": {"torch": torch.__version__, "timm": timm.__version__, "open_clip": open_clip.__version__},
        "tiny_fastvit": forward(filled(oracles.tiny_fastvit()), 64, 13, 100, lengths),
        "tiny_fastvit training": training(filled(oracles.tiny_fastvit()), 64),
        "tiny_vit apple": forward(filled(oracles.tiny_vit("apple")), 64, 13, 100, lengths),
        "tiny_vit timm": forward(filled(oracles.tiny_vit("timm")), 64, 13, 100, lengths),
    }
    zero = ("visual.trunk.head.fc.bias",)  # as in Apple's weights; MobileCLIP-S2 has one here
    golden["MobileCLIP-S1"] = forward(filled(oracles.full("MobileCLIP-S1"), zero), 256, 77, 49408, (5, 9, 77))
    golden["MobileCLIP-S2"] = forward(filled(oracles.full("MobileCLIP-S2")), 256, 77, 49408, (5, 9, 77))
    path = Path(__file__).with_name("mobileclip_golden.json")
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items()) + "\n}\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text)} characters")


if __name__ == "__main__":
    main()
