"""Time of MobileCLIP-S1 beside open_clip's: `make parity`, then PYTHONPATH=src .venv-parity/bin/python this file.

One thread; calls alternate, and ratios are medians over the rounds of processor time, so that other work on the machine
hardly counts. The golden numbers say that outputs are equal.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import hashed
import oracles
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from polyfuse.models.mobileclip import MobileCLIP

Call = Callable[[], object]


def rounds(ours: Call, theirs: Call, number: int) -> str:
    """Milliseconds of both, and the median of the ratios."""
    times: dict[Call, list[float]] = {ours: [], theirs: []}
    for turn in range(number + 1):
        for call in (ours, theirs) if turn % 2 else (theirs, ours):
            start = time.thread_time()
            call()
            times[call].append(1e3 * (time.thread_time() - start))
    kept = [values[1:] for values in times.values()]  # the first call warms up
    ratio = statistics.median(mine / other for mine, other in zip(*kept, strict=True))
    return f"{statistics.median(kept[0]):8.1f} ms  {statistics.median(kept[1]):8.1f} ms  {ratio:.3f}"


def step(encode: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor) -> Call:
    def call() -> None:
        model.train()
        encode(images).square()[:, 0].sum().backward()
        model.zero_grad(set_to_none=True)

    return call


def main() -> None:
    torch.set_num_threads(1)
    theirs = oracles.full("MobileCLIP-S1")
    theirs.load_state_dict(hashed.weights(theirs.state_dict()))
    theirs.eval()
    ours = MobileCLIP.from_original(theirs.state_dict())
    fused, folded = copy.deepcopy(ours).reparameterize(), copy.deepcopy(theirs)
    folded.visual.trunk = reparameterize_model(folded.visual.trunk)
    print(f"{'MobileCLIP-S1':<36} {'ours':>11} {'open_clip':>12}  ratio")
    for batch, number in ((1, 21), (8, 7)):
        images, ids = hashed.images(batch, 256), hashed.texts((9,) * batch, 77, 49408)
        with torch.inference_mode():
            for name, mine, other in (("training form", ours, theirs), ("reparameterised", fused, folded)):
                line = rounds(partial(mine.encode_image, images), partial(other.encode_image, images), number)
                print(f"{f'image, {name}, batch {batch}':<36} {line}", flush=True)
            line = rounds(partial(ours.encode_text, ids), partial(theirs.encode_text, ids), number)
            print(f"{f'text, batch {batch}':<36} {line}", flush=True)
    images = hashed.images(4, 256)
    line = rounds(step(ours.encode_image, ours, images), step(theirs.encode_image, theirs, images), 5)
    print(f"{'image, training step, batch 4':<36} {line}")


if __name__ == "__main__":
    main()
