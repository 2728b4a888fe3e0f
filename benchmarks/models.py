"""Time the models against the libraries that people use today, at equal outputs.

    python benchmarks/models.py             # all cases, some ten minutes on one core
    python benchmarks/models.py --rounds 3  # a quick look

One process, one thread. Both sides hold the same weights (ours are converted from theirs), and the largest difference
of their outputs is printed. Every round times both in random order, forward alone or forward and backward, and gives
one ratio; the table shows the median. ``transformers`` runs with its fused attention (``sdpa``). open_clip, timm want
another environment: ``make parity`` times MobileCLIP there.

The last part gives a text encoder captions of mixed length, padded to the longest: tokens per second that are words.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.layers import CoAttentionLayer
from polyfuse.models import Bert
from polyfuse.models.clip import CLIP

Arm = Callable[[], Tensor]
Pair = tuple[str, nn.Module, Arm, nn.Module, Arm]
HEADS = f"{'case':<44} {'largest difference':>18} {'forward':>8} {'training':>9}   ours / theirs, median"


def clip_b32(batch: int) -> Iterator[Pair]:
    """Both towers of ViT-B/32, random weights."""
    from transformers import CLIPConfig, CLIPModel

    theirs = CLIPModel._from_config(CLIPConfig(), attn_implementation="sdpa").eval()
    ours = CLIP.from_original(theirs.state_dict(), theirs.config.to_dict())
    images, ids = torch.rand(batch, 3, 224, 224), torch.randint(1, 49000, (batch, 77))
    ids[:, -1] = 49407
    yield (
        f"CLIP ViT-B/32, images, batch {batch}",
        ours.image,
        lambda: ours.image(images),
        theirs.vision_model,
        lambda: theirs.visual_projection(theirs.vision_model(pixel_values=images).pooler_output),
    )
    yield (
        f"CLIP ViT-B/32, texts of 77, batch {batch}",
        ours.text,
        lambda: ours.text(ids),
        theirs.text_model,
        lambda: theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output),
    )


def bert_base(batch: int, length: int) -> Iterator[Pair]:
    """BERT-base without padding."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = BertModel._from_config(config, attn_implementation="sdpa").eval()
    ours = Bert.from_original(theirs.state_dict(), config.to_dict())
    ids = torch.randint(1, 30000, (batch, length))
    yield (
        f"BERT-base, {batch} texts of {length}",
        ours,
        lambda: ours(ids).sequence,
        theirs,
        lambda: theirs(input_ids=ids).last_hidden_state,
    )


def lxmert_layer(batch: int, words: int, regions: int) -> Iterator[Pair]:
    """One cross-modality layer of LXMERT's size, one set of co-attention weights for both directions."""
    from transformers import LxmertConfig
    from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

    config = LxmertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = LxmertXLayer(config).eval()
    ours = CoAttentionLayer((768, 768), 12, shared=True, self_attention=True, eps=1e-12).eval()
    _copy_lxmert(theirs, ours)
    text, image = torch.randn(batch, words, 768), torch.randn(batch, regions, 768)
    yield (
        f"LXMERT co-attention layer, {batch} x {words} + {regions}",
        ours,
        lambda: torch.cat(ours(text, image), dim=1),
        theirs,
        lambda: torch.cat(theirs(text, None, image, None)[:2], dim=1),
    )


@torch.no_grad()
def _copy_lxmert(theirs: Any, ours: Any) -> None:
    def fuse(target: Any, source: Any) -> None:
        parts = (source.query, source.key, source.value)
        target.weight.copy_(torch.cat([part.weight for part in parts]))
        target.bias.copy_(torch.cat([part.bias for part in parts]))

    cross = theirs.visual_attention
    fuse(ours.co_attention.qkv[0], cross.att)
    ours.co_attention.out[0].load_state_dict(cross.output.dense.state_dict())
    ours.co_norm[0].load_state_dict(cross.output.LayerNorm.state_dict())
    for layer, prefix in zip(ours.streams, ("lang", "visn"), strict=True):
        own = getattr(theirs, f"{prefix}_self_att")
        fuse(layer.attention.qkv, own.self)
        layer.attention.out.load_state_dict(own.output.dense.state_dict())
        layer.attention_norm.load_state_dict(own.output.LayerNorm.state_dict())
        layer.mlp.up.load_state_dict(getattr(theirs, f"{prefix}_inter").dense.state_dict())
        after = getattr(theirs, f"{prefix}_output")
        layer.mlp.down.load_state_dict(after.dense.state_dict())
        layer.mlp_norm.load_state_dict(after.LayerNorm.state_dict())


def seconds(arm: Arm, module: nn.Module, train: bool) -> float:
    """CPU seconds of one pass; gradients are dropped before, outside the clock."""
    module.zero_grad(set_to_none=True)
    start = time.process_time()
    if train:
        arm().square().mean().backward()
    else:
        with torch.inference_mode():
            arm()
    return time.process_time() - start


def ratio(pair: Pair, train: bool, rounds: int) -> float:
    """Median over rounds of our seconds over theirs."""
    _, ours, our_arm, theirs, their_arm = pair
    arms = [(our_arm, ours), (their_arm, theirs)]
    for arm, module in arms:
        seconds(arm, module, train)
    found = []
    for _ in range(rounds):
        order = random.sample([0, 1], 2)
        taken = {place: seconds(*arms[place], train) for place in order}
        found.append(taken[0] / taken[1])
    return statistics.median(found)


def mixed_lengths(batch: int, longest: int) -> Tensor:
    """Lengths like those of captions: most are short, a few reach the longest, int64 ``(B,)``."""
    drawn = torch.distributions.LogNormal(2.5, 0.5).sample((batch,)).round().long()
    lengths = drawn.clamp(4, longest)
    lengths[0] = longest
    return lengths


def words_per_second(batch: int, longest: int, rounds: int) -> None:
    """BERT-base on padded texts: transformers, ours padded, ours without the padding."""
    from transformers import BertConfig, BertModel

    theirs = BertModel._from_config(BertConfig(), attn_implementation="sdpa").eval()
    ours = Bert.from_original(theirs.state_dict(), theirs.config.to_dict())
    lengths = mixed_lengths(batch, longest)
    mask = torch.arange(longest)[None] < lengths[:, None]
    ids = torch.randint(1, 30000, (batch, longest)).masked_fill(~mask, 0)
    arms: dict[str, Arm] = {
        "transformers, padded": lambda: theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state,
        "polyfuse, padded": lambda: ours(ids, text_mask=mask).sequence,
        "polyfuse, padding skipped": lambda: ours(ids, text_mask=mask, skip_padding=True).sequence,
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name in random.sample(list(arms), len(arms)):
            taken[name].append(seconds(arms[name], ours, False))
    words = int(lengths.sum())
    print(f"\nBERT-base, {batch} texts, {words} tokens in {batch * longest} places")
    first = statistics.median(taken["transformers, padded"][1:])
    for name, times in taken.items():
        middle = statistics.median(times[1:])
        print(f"  {name:<28} {words / middle:8.0f} tokens/s   {first / middle:5.2f}x")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    print(HEADS)
    builders: list[Callable[[], Iterator[Pair]]] = [
        lambda: clip_b32(4),
        lambda: bert_base(4, 64),
        lambda: lxmert_layer(4, 20, 36),
    ]
    for build in builders:
        for pair in build():
            with torch.inference_mode():
                apart = (pair[2]() - pair[4]()).abs().max().item()
            print(f"{pair[0]:<44} {apart:18.1e} {ratio(pair, False, rounds):8.2f} {ratio(pair, True, rounds):9.2f}")
    words_per_second(32, 64, rounds)


if __name__ == "__main__":
    main()
