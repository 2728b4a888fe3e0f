"""Moving scenes with sound: find a clip by its caption, tag it, and notice when its sound is late.

Run: ``python examples/video_retrieval.py``, under three minutes. ``--smoke``: few clips and steps, seconds.
"""
# ruff: noqa: D101, D102

import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn

from polyfuse.data.moving_scenes import TAGS, ClipConfig, make_clips
from polyfuse.data.stream_rows import window_rows
from polyfuse.encoders.sequence import MaskedConvStack, masked_max, masked_mean
from polyfuse.encoders.text import TextTransformer
from polyfuse.encoders.video import VideoFrames
from polyfuse.evaluate.synchrony import synchrony

SMOKE = "--smoke" in sys.argv
torch.set_num_threads(1)
CLIPS, HELD_OUT, STEPS, ROWS = (64, 20, 4, 16) if SMOKE else (1500, 100, 420, 32)
SHIFTS, WIDTH, LENGTH = (-0.375, -0.25, -0.125, 0.125, 0.25, 0.375), 64, 40
CONFIG, DROP = ClipConfig(frames=24), str.maketrans("", "", ",.")  # 8 frames a second


class Table:
    def __init__(self, clips, words):
        self.frames = torch.from_numpy(clips.frames).permute(0, 1, 4, 2, 3).contiguous()
        self.times = torch.from_numpy(clips.frame_times).float()
        power = torch.from_numpy(clips.sound).square().view(len(clips), -1, 50).mean(dim=2)  # 80 a second
        self.power = (1e-4 + power).log() / 4 + 1
        self.tags = torch.from_numpy(clips.tags).float()
        self.captions = clips.captions
        ids = [[words.get(word, 1) for word in text.translate(DROP).split()] for text in clips.captions]
        self.ids = torch.tensor([(row + [0] * LENGTH)[:LENGTH] for row in ids])

    def heard(self, rows, seconds):
        """Loudness around the inner frames' times, ``(B, F - 6, 1)``, as if the sound came ``seconds`` later."""
        late = (torch.arange(240) + 0.5) / 80 + torch.as_tensor(seconds).view(-1, 1)
        inner = self.times[3:-3]  # nothing runs out at the ends, which would tell a shift
        return window_rows(self.power[rows, :, None], late, late > -9, inner, width=0.125)[0]


class Model(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.video = VideoFrames(WIDTH, frames=CONFIG.frames, size=CONFIG.side, hidden_dim=WIDTH)
        self.text = TextTransformer(WIDTH, vocab_size=words + 2, max_length=LENGTH, dropout=0.1)
        self.tags = nn.Linear(2 * WIDTH, len(TAGS))
        self.together = MaskedConvStack(WIDTH + 1, 1, hidden_dim=32, max_dim=64, num_stages=1, dropout=0.0)
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def see(self, table, rows):
        frames = table.frames[rows]
        here = torch.ones(frames.shape[:2], dtype=torch.bool)
        tokens = self.video.tokens({"frames": frames, "times": table.times.expand(here.shape), "mask": here})
        return tokens, torch.cat([masked_mean(tokens, here), masked_max(tokens, here)], dim=1)

    def alike(self, pooled, ids):
        clip = F.normalize(self.video.project(self.video.norm(pooled)), dim=1)
        return clip @ F.normalize(self.text({"ids": ids, "mask": ids > 0}), dim=1).T

    def synchronous(self, tokens, heard):
        x = torch.cat([tokens[:, 3:-3], heard], dim=2)
        return self.together(x, torch.ones(x.shape[:2], dtype=torch.bool))[:, 0]


torch.manual_seed(0)
known, others = (make_clips(n, seed=0, split=s, config=CONFIG) for n, s in ((CLIPS, "train"), (HELD_OUT, "test")))
words = {w: 2 + i for i, w in enumerate(sorted({w for text in known.captions for w in text.translate(DROP).split()}))}
table, held_out, model = Table(known, words), Table(others, words), Model(len(words))
optimiser = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
for _ in range(STEPS):
    rows = torch.randperm(CLIPS)[:ROWS]
    tokens, pooled = model.see(table, rows)
    logits = model.alike(pooled, table.ids[rows]) * model.sharpness.exp()
    loss = F.cross_entropy(logits, torch.arange(ROWS)) + F.cross_entropy(logits.T, torch.arange(ROWS))
    loss = loss + 3 * F.binary_cross_entropy_with_logits(model.tags(pooled), table.tags[rows])
    late = torch.tensor(SHIFTS)[torch.randint(len(SHIFTS), (ROWS,))]
    true, wrong = (model.synchronous(tokens, table.heard(rows, s)) for s in (torch.zeros(ROWS), late))
    loss = loss + F.softplus(-true).mean() + F.softplus(wrong).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()

rows = torch.arange(HELD_OUT)
tokens, pooled = model.eval().requires_grad_(False).see(held_out, rows)
best = model.alike(pooled, held_out.ids).argmax(dim=0).tolist()
hits = np.mean([held_out.captions[clip] == text for clip, text in zip(best, held_out.captions, strict=True)])
print(f"text to video: R@1 {100 * hits:.0f} % of {HELD_OUT} held-out clips (chance {100 / HELD_OUT:.0f} %)")
precision = average_precision_score(held_out.tags, model.tags(pooled))
print(f"tags: macro AP {precision:.2f} (chance {held_out.tags.mean():.2f})")
result = synchrony(lambda d: model.synchronous(tokens, held_out.heard(rows, np.full(HELD_OUT, d))), SHIFTS)
print("\n".join(["the sound is late by", *result.lines()]))
