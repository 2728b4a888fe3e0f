"""Writes golden_efficientnet.json from the original implementation: pip install efficientnet-lite-pytorch==0.1.0."""

import json
from pathlib import Path

import numpy as np
import torch

from polyfuse.data.fetch import fetch
from polyfuse.encoders.features import digest_of


def main() -> None:
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    (path,) = fetch("efficientnet_lite0").glob("*.pth")
    # Its padding is fixed for one picture size when it is built.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=96)
    network.load_state_dict(torch.load(path, weights_only=True))
    x = (np.arange(2 * 3 * 96 * 96).reshape(2, 3, 96, 96) * 2654435761 % 4294967296 // 16777216).astype(np.uint8)
    with torch.no_grad():
        logits = network.eval()((torch.from_numpy(x).float() - 127) / 128)
    golden = {"weights_digest": digest_of([path]), "logits": logits[:, ::250].tolist()}
    (Path(__file__).parent / "golden_efficientnet.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
