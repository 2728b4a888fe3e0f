"""What CLIP and MobileCLIP share: two towers, one embedding space, the same outputs.

Shapes: B images, C texts, L tokens, E embedding width. Masks: True = present.
"""

from collections.abc import Sequence

from torch import Tensor

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel


class PairedTowers(PretrainedModel):
    """An image tower and a text tower; a subclass says how each embeds and what cosines are multiplied by."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings ``(B, E)`` of length 1."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_image")

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``(C, E)`` of length 1."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_text")

    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        raise NotImplementedError(f"{type(self).__name__} must define scale")

    def encode(
        self, images: Tensor | None = None, input_ids: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``image_embedding (B, E)`` and ``text_embedding (C, E)``, of what is given; length 1.

        Raises:
            ValueError: If nothing is given.
        """
        if images is None and input_ids is None:
            raise ValueError("give images, input_ids, or both; got neither")
        found = {}
        if images is not None:
            found["image_embedding"] = self.encode_image(images)
        if input_ids is not None:
            found["text_embedding"] = self.encode_text(input_ids, text_mask)
        return found

    def forward(
        self,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """Embeddings of what is given; where both are, every image's logits over every text.

        ``info``: ``image_embedding (B, E)``, ``text_embedding (C, E)``, ``logit_scale ()``, ``logits_per_image (B, C)``
        and its transpose ``logits_per_text``, ``<task>_logits`` of heads where there are images.
        """
        if return_attention:
            with capture_attention(self) as maps:
                return self(images, input_ids, text_mask, tasks=tasks)._replace(attentions=maps)
        asked = self.asked(tasks)
        info = {**self.encode(images, input_ids, text_mask), "logit_scale": self.scale()}
        if images is not None and input_ids is not None:
            logits_BC = info["logit_scale"] * info["image_embedding"] @ info["text_embedding"].t()
            info |= {"logits_per_image": logits_BC, "logits_per_text": logits_BC.t()}
        if images is not None:
            info |= {f"{task}_logits": self.heads[task](info["image_embedding"]) for task in asked}
        return ModelOutput(None, None, info)
