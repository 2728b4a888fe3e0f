"""CLIP: an image tower and a text tower with one embedding space.

Shapes: B images, C texts, L tokens, E embedding width. Masks: True = present.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.clip_original import OPENAI_NUMBERS, arguments_from, clip_rules, layout_of, prepared, read_weights
from polyfuse.models.convert import Rule, named_tensors
from polyfuse.models.paired_towers import PairedTowers
from polyfuse.models.pretrained import arguments
from polyfuse.models.text_transformer import TextTower
from polyfuse.models.vision_transformer import VisionTower

_BUFFERS = ("position_ids", "attn_mask")


class CLIP(PairedTowers):
    """Contrastive language-image pre-training, with OpenAI's vision transformers.

    Source: https://arxiv.org/abs/2103.00020. The defaults are ViT-B/32. OpenAI's weights need ``quick_gelu``, most that
    were trained later ``gelu``: the activation is part of the config and travels with the weights.

    ``classification`` is a head for images, linear on the embedding of length 1: with class embeddings (see
    ``class_embeddings``) as its weight it is the zero-shot classifier, from which fine-tuning starts.

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch.
        image_dim: Width of the image tower.
        image_layers: Its layers.
        image_heads: Its heads; None = 64 channels each.
        image_hidden_dim: Hidden width of its feed-forward parts; None = 4 times its width.
        vocab_size: Token ids.
        context_length: Most tokens of a text, start and end included.
        text_dim: Width of the text tower.
        text_layers: Its layers.
        text_heads: Its heads; None = 64 channels each.
        text_hidden_dim: Hidden width of its feed-forward parts; None = 4 times its width.
        embed_dim: Width E.
        activation: ``quick_gelu`` or another entry of ``polyfuse.layers.transformer.ACTIVATIONS``.
        text_activation: Of the text tower; None = ``activation``.
        eps: Of the norms.
        text_eps: Of the norms of the text tower; None = ``eps``.
        causal: Whether no token of a text sees a later one.
        pooling: Where a text is read: at its highest id (``argmax``), or at the first ``eos_id`` (``eos``). The two
            differ for weights with tokens added behind the end token.
        eos_id: Id of the end of a text; None = the last of the vocabulary.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a name is unknown or sizes do not fit together.

    Example:
        >>> model = clip_tiny().eval()
        >>> ids = torch.tensor([[62, 5, 63, 0], [62, 7, 9, 63], [62, 63, 0, 0]])
        >>> model(torch.rand(2, 3, 32, 32), ids).logits_per_image.shape
        torch.Size([2, 3])
    """

    LAYOUTS = ("openai", "hf", "open_clip_custom_text")

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 32,
        image_dim: int = 768,
        image_layers: int = 12,
        image_heads: int | None = None,
        image_hidden_dim: int | None = None,
        vocab_size: int = 49408,
        context_length: int = 77,
        text_dim: int = 512,
        text_layers: int = 12,
        text_heads: int | None = None,
        text_hidden_dim: int | None = None,
        embed_dim: int = 512,
        activation: str = "quick_gelu",
        text_activation: str | None = None,
        eps: float = 1e-5,
        text_eps: float | None = None,
        causal: bool = True,
        pooling: str = "argmax",
        eos_id: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.image = VisionTower(
            image_size=image_size,
            patch_size=patch_size,
            dim=image_dim,
            num_layers=image_layers,
            num_heads=max(1, image_dim // 64) if image_heads is None else image_heads,
            hidden_dim=image_hidden_dim,
            out_dim=embed_dim,
            activation=activation,
            eps=eps,
            **factory,
        )
        self.text = TextTower(
            vocab_size=vocab_size,
            dim=text_dim,
            num_layers=text_layers,
            num_heads=max(1, text_dim // 64) if text_heads is None else text_heads,
            hidden_dim=text_hidden_dim,
            context_length=context_length,
            out_dim=embed_dim,
            causal=causal,
            activation=activation if text_activation is None else text_activation,
            pooling=pooling,
            eos_id=vocab_size - 1 if eos_id is None else eos_id,
            eps=eps if text_eps is None else text_eps,
            **factory,
        )
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07), **factory))

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings ``(B, E)`` of length 1, of ``(B, 3, image_size, image_size)``; ``self.image`` gives raw ones."""
        return F.normalize(self.image(images), dim=-1)

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``(C, E)`` of length 1; ``self.text`` gives raw ones.

        Args:
            input_ids: ``(C, L)``, L up to ``context_length``; a tower that is not causal gets the missing padding (0).
            text_mask: ``(C, L)`` bool. Ids under a False may be anything. Where the tower is causal no mask is needed:
                padding stands behind the end of a text. One that is not causal attends to padding, as in training, so
                that ids under a False are read as padding.

        Raises:
            ValueError: If a text is longer than ``context_length``, or the mask is not of the ids' shape.
        """
        if not self.text.causal:
            if text_mask is not None:
                self.text.check(input_ids, text_mask)
                input_ids, text_mask = input_ids.masked_fill(~text_mask, 0), None
            missing = self.text.positions.shape[0] - input_ids.shape[-1]
            input_ids = F.pad(input_ids, (0, missing)) if missing > 0 else input_ids
        return F.normalize(self.text(input_ids, text_mask), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by: ``exp(logit_scale)``. In training clip it to 100 (section 2.5)."""
        return self.logit_scale.exp()

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """Build the model from a checkpoint in OpenAI's, open_clip's or Hugging Face's layout, in evaluation mode.

        Args:
            source: Tensors by their original names, or a file of them (safetensors; PyTorch with
                ``weights_only=True``). Parts in half precision beside parts in full become float32.
            config: ``config.json`` of Hugging Face, ``open_clip_config.json``, or open_clip's model config, as a
                mapping or a file. The OpenAI layout needs none: sizes are told from shapes. What shapes do not tell is
                the activation; without a config it is OpenAI's own, ``quick_gelu``, with a warning
                (``{"quick_gelu": True}`` as a config silences it, False gives ``gelu``).
            layout: One of ``LAYOUTS``; None = told from the names.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit; if the config asks for
                what this model is not; if the file is a TorchScript archive.
        """
        state = named_tensors(source) if isinstance(source, Mapping) else read_weights(Path(source))
        return super().from_original(prepared(state), config, layout=layout)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Constructor arguments from the original config, or from shapes."""
        return arguments_from(state, config)

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """Between our names and those of a layout."""
        if layout is None:
            layout = "openai" if state is None else layout_of(state)
        if layout not in self.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(self.LAYOUTS)}, got {layout!r}")
        return clip_rules(self, layout), lambda key: key.rpartition(".")[2] in _BUFFERS or key in OPENAI_NUMBERS


def _classification(model: CLIP, num_classes: int) -> nn.Module:
    like = model.logit_scale
    return nn.Linear(model.config["embed_dim"], num_classes, device=like.device, dtype=like.dtype)


CLIP.HEADS = {"classification": _classification}


def class_embeddings(
    model: Any,
    tokenize: Callable[[Sequence[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Tensor:
    """One embedding per class ``(C, E)``: the mean over templates of embeddings of length 1, at length 1 again.

    Source: https://arxiv.org/abs/2103.00020, section 3.1.4. Images times its transpose, times ``model.scale()``, are
    the zero-shot logits.

    Args:
        model: Has ``encode_text`` (``CLIP``, ``MobileCLIP``).
        tokenize: Texts to ids ``(N, L)``, a ``ClipTokenizer`` say.
        names: Of the classes.
        templates: Sentences with ``{}`` where the name goes.

    Raises:
        ValueError: If there is no name or no template, or a template lacks its ``{}``.
    """
    if not names or not templates:
        raise ValueError(f"give at least one name and one template, got {len(names)} and {len(templates)}")
    lacking = [template for template in templates if "{}" not in template]
    if lacking:
        raise ValueError(f"a template must have {{}} where the name goes, got {lacking[0]!r}")
    device = model.logit_scale.device
    rows = []
    for name in names:  # a class at a time: thousands of classes with eighty templates would not fit
        ids = tokenize([template.replace("{}", name) for template in templates])
        rows.append(F.normalize(model.encode_text(ids.to(device)), dim=-1).mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)


def clip_vit_b32(**kwargs: Any) -> CLIP:
    """ViT-B/32: 151,277,313 parameters."""
    return CLIP(**kwargs)


def clip_vit_b16(**kwargs: Any) -> CLIP:
    """ViT-B/16: 149,620,737 parameters."""
    return CLIP(**{"patch_size": 16, **kwargs})


def clip_vit_l14(**kwargs: Any) -> CLIP:
    """ViT-L/14: 427,616,513 parameters."""
    large = {"patch_size": 14, "image_dim": 1024, "image_layers": 24, "text_dim": 768, "embed_dim": 768}
    return CLIP(**{**large, **kwargs})


def clip_tiny(**kwargs: Any) -> CLIP:
    """For tests: images of 32 pixels, a vocabulary of 64."""
    tiny = {
        "image_size": 32,
        "patch_size": 8,
        "image_dim": 32,
        "image_layers": 2,
        "image_heads": 4,
        "vocab_size": 64,
        "context_length": 16,
        "text_dim": 24,
        "text_layers": 2,
        "text_heads": 3,
        "embed_dim": 20,
    }
    return CLIP(**{**tiny, **kwargs})
