"""The matchers' study counts with the library's rule."""

import torch

from polyfuse.studies.dual_encoder import found


def test_the_right_text_of_each_picture_is_looked_for() -> None:
    texts = torch.eye(7)
    images = torch.stack([texts[3], 0.9 * texts[5] + texts[2], torch.ones(7)])
    score = found(images, texts, torch.tensor([3, 5, 0]))
    assert (score.gallery, score.queries) == (7, 3)
    assert score.at == {1: torch.tensor(1 / 3).item(), 5: torch.tensor(2 / 3).item(), 10: 1.0}  # ties stand before it
