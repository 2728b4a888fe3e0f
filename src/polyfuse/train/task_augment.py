"""Random changes of training batches of task data, keyed by row and step (``data/augment_pairs.py``)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from polyfuse.data.augment_pairs import ImageAugmentation, drop_tokens, names_a_side, noisy_features
from polyfuse.tasks.batch import Collator, TaskBatch
from polyfuse.tasks.words import SPECIALS


@dataclass(frozen=True)
class TaskAugmentation:
    """What changes. Called with the collator of the rows, it gives what ``fit_tasks`` takes.

    Pictures are not changed where the model reads regions, whose features get noise instead. A mirrored picture keeps
    its words, so texts that name a side are left as they are; captions to be written count as texts.

    Attributes:
        images: Of pictures; None leaves them.
        words: Share of the words left out of the input.
        noise: Spread of noise on region features.
        seed: Of the draws.
    """

    images: ImageAugmentation | None = None
    words: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __call__(self, collate: Collator) -> Callable[[TaskBatch, int], TaskBatch]:
        """``(batch, step) -> batch``."""
        sided: Tensor = names_a_side(collate.data.texts)
        row_of = {key: row for row, key in enumerate(collate.keys.tolist())}

        def change(batch: TaskBatch, step: int) -> TaskBatch:
            new: dict[str, Any] = {}
            if self.images is not None and batch.image is not None:
                rows = [row_of[key] for key in batch.keys.tolist()]
                may_flip = ~sided[rows].to(batch.keys.device)
                image, box = self.images(
                    batch.image,
                    batch.keys,
                    seed=self.seed,
                    epoch=step,
                    boxes=batch.target.get("box"),
                    may_flip=may_flip,
                )
                new["image"] = image.masked_fill(~batch.present[:, :1, None, None], 0.0)
                if box is not None:
                    new["target"] = {**batch.target, "box": box}
            if self.noise and batch.regions is not None:
                new["regions"] = noisy_features(batch.regions, batch.keys, self.seed, step, spread=self.noise)
            if self.words:
                new["text"], new["text_mask"] = drop_tokens(
                    batch.text,
                    batch.text_mask,
                    batch.keys,
                    self.seed,
                    step,
                    share=self.words,
                    special_ids=range(len(SPECIALS)),
                )
            return replace(batch, **new)

        return change
