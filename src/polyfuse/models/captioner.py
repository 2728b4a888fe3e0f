"""Captioner: a causal text decoder that reads the token states of any encoder.

Shapes: B batch, L text tokens, K context tokens, D width, C context width, V vocabulary. Masks: True = present.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.transformer import TransformerLayer
from polyfuse.models.captioner_parts import TokenEncoder, caption_loss, checked_mask, described, evaluating
from polyfuse.models.captioner_step import DecoderStep
from polyfuse.models.convert import read_tensors
from polyfuse.models.generation import Generated, beam_search, greedy, nucleus
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments

__all__ = ["METHODS", "Captioner", "TokenEncoder", "caption_loss", "captioner_base", "captioner_tiny"]

METHODS = ("greedy", "beam", "nucleus")


class Captioner(PretrainedModel):
    """A decoder in the manner of GPT-2 with attention to a context in every layer.

    ``x = words + positions``; layers of causal self-attention, attention to the context and feed-forward (pre-norm,
    a last norm at the end; or post-norm, a first norm after the embeddings, none at the end); logits from the word
    table (tied) or a matrix of their own. With ``normalize_context=False`` and ``activation="gelu_tanh"`` it is
    ``transformers``' GPT-2 with ``add_cross_attention``, which the tests compare it with.

    A row without any context (``present`` or ``context_mask`` False throughout, or no context at all) is decoded as by
    a language model of text alone: nothing that stands there is read.

    Source: https://arxiv.org/abs/1706.03762, section 3.1 (decoder); pre-norm and initial values as in GPT-2.

    Args:
        vocab_size: Token ids V.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        context_dim: Width C of the context; None = ``dim``.
        max_length: Positions.
        hidden_dim: Hidden width of the feed-forward parts; None = 4 D.
        tied_output: Whether the logits come from the word table.
        normalize_context: A LayerNorm on the context: features of frozen encoders come at any scale.
        norm_first: Pre-norm or post-norm.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On the embeddings and on what every part adds.
        attention_dropout: On attention weights; None = ``dropout``.
        eps: Of the norms.
        bos_id: Begins a text in ``generate``.
        eos_id: Ends it.
        pad_id: Stands behind the end.
        encoder: Makes the context: a module with ``encode(...) -> states (B, K, C)``, or ``(states, mask (B, K))``;
            ``TokenEncoder`` makes one of any model. Its weights are saved with the decoder's, its config is not.
        device: Device of the decoder's parameters.
        dtype: Dtype of the decoder's parameters.

    Raises:
        ValueError: If a size does not fit or an id is outside the vocabulary.

    Example:
        >>> model = captioner_tiny(context_dim=6).eval()
        >>> regions = torch.zeros(2, 7, 6)
        >>> model(torch.tensor([[1, 5, 9], [1, 4, 2]]), context=regions).logits.shape
        torch.Size([2, 3, 97])
        >>> model.generate(regions, method="beam", num_beams=3, max_length=5).ids.shape[0]
        2
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        context_dim: int | None = None,
        max_length: int = 64,
        hidden_dim: int | None = None,
        tied_output: bool = True,
        normalize_context: bool = True,
        norm_first: bool = True,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        eps: float = 1e-5,
        bos_id: int = 1,
        eos_id: int = 2,
        pad_id: int = 0,
        encoder: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = {name: value for name, value in arguments(locals()).items() if name != "encoder"}
        super().__init__()
        self.config = config
        for name, number in (("vocab_size", vocab_size), ("num_layers", num_layers), ("max_length", max_length)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for name, number in (("bos_id", bos_id), ("eos_id", eos_id), ("pad_id", pad_id)):
            self._check_id(name, number)
        self.context_dim, self.max_length, self.dropout = context_dim or dim, max_length, dropout
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.words = nn.Embedding(vocab_size, dim, **factory)
        self.positions = nn.Embedding(max_length, dim, **factory)
        self.context_norm = nn.LayerNorm(self.context_dim, eps=eps, **factory) if normalize_context else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim,
                num_heads,
                hidden_dim,
                context_dim=self.context_dim,
                norm_first=norm_first,
                activation=activation,
                dropout=dropout,
                attention_dropout=attention_dropout,
                eps=eps,
                **factory,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.output = None if tied_output else nn.Linear(dim, vocab_size, bias=False, **factory)
        self._initialize()
        self.encoder = encoder

    def _initialize(self) -> None:
        """N(0, 0.02), biases 0; what ends in the residual stream is smaller the more parts add to it (GPT-2)."""
        for name, part in self.named_modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                adds = name.endswith((".out", ".down"))
                nn.init.normal_(part.weight, std=0.02 / math.sqrt(3 * len(self.layers)) if adds else 0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def _check_id(self, name: str, value: int) -> None:
        if not 0 <= value < self.config["vocab_size"]:
            raise ValueError(f"{name} must be in the vocabulary, 0 to {self.config['vocab_size'] - 1}, got {value}")

    def encode(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The encoder's token states ``(B, K, C)`` and their mask ``(B, K)`` (None = all present).

        Raises:
            ValueError: If there is no encoder, or it returns something else.
        """
        if self.encoder is None:
            raise ValueError("this captioner has no encoder: pass encoder= to it, or pass context= yourself")
        encode: Callable[..., Any] = self.encoder.encode  # type: ignore[assignment]
        found = encode(*args, **kwargs)
        states, mask = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(states, Tensor) or states.ndim != 3 or not (mask is None or mask.dtype == torch.bool):
            raise ValueError(
                f"{type(self.encoder).__name__}.encode must return states (B, K, C), or states and a bool mask (B, K), "
                f"got {described(found)}; wrap it in TokenEncoder(model, read)"
            )
        return states, mask

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        present: Tensor | None = None,
        *,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """Teacher forcing: ``logits[:, i]`` score the token after ``input_ids[:, i]``; the loss is ``caption_loss``.

        Args:
            input_ids: ``(B, L)``, BOS first.
            text_mask: ``(B, L)`` bool; positions count present tokens, so padding may stand on either side.
            context: ``(B, K, C)``; None = no row has any.
            context_mask: ``(B, K)`` bool; None = all present. What stands elsewhere, even NaN, is not read.
            present: ``(B,)`` or ``(B, 1)`` bool: whether the row has a context at all; None = as the mask says.
            tasks: A captioner has no heads to attach; anything but None or () is refused.
            return_attention: Fill ``attentions``: ``layers.0.attention``, ``layers.0.context_attention``, ...

        Shape:
            - ``logits``: ``(B, L, V)``; ``info["sequence"]``: ``(B, L, D)``, what they are made from.

        Raises:
            ValueError: If shapes do not fit together or a text is longer than ``max_length``.
        """
        if return_attention:
            with capture_attention(self) as maps:
                output = self(input_ids, text_mask, context, context_mask, present, tasks=tasks)
            return output._replace(attentions=maps)
        self.asked(tasks)
        self._check_text(input_ids, text_mask)
        states, mask = self.read_context(context, context_mask, present, batch=input_ids.shape[0])
        x_BLD = self._embed(input_ids, text_mask)
        for layer in self.layers:
            x_BLD = layer(x_BLD, text_mask, context=states, context_mask=mask, causal=True)
        sequence = self._last_norm(x_BLD)
        return ModelOutput(self._logits(sequence), None, {"sequence": sequence})

    def read_context(
        self, context: Tensor | None, context_mask: Tensor | None, present: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor | None]:
        """The context as the layers read it, absent tokens zeroed, and its mask."""
        weight = self.words.weight
        if context is None:
            # One token that nobody may read: absent for all rows and absent for some are the same function.
            context = weight.new_zeros(batch, 1, self.context_dim)
            present = torch.zeros(batch, dtype=torch.bool, device=weight.device)
            context_mask = None
        size = context.shape
        if context.ndim != 3 or size[0] != batch or size[1] == 0 or size[2] != self.context_dim:
            raise ValueError(f"context must have shape (B, K, C) = ({batch}, K, {self.context_dim}), got {tuple(size)}")
        mask = checked_mask("context_mask", context_mask, size[:2])
        if present is not None:
            if present.shape not in ((batch,), (batch, 1)) or present.dtype != torch.bool:
                raise ValueError(f"present must be bool of shape (B,) = ({batch},), got {described(present)}")
            there = present.view(batch, 1).expand(size[:2])
            mask = there if mask is None else mask & there
        if mask is not None:
            context = context.masked_fill(~mask[..., None], 0.0)
        return context if self.context_norm is None else self.context_norm(context), mask

    def _check_text(self, input_ids: Tensor, text_mask: Tensor | None) -> None:
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            raise ValueError(f"input_ids must be integers of shape (B, L), got {described(input_ids)}")
        if input_ids.shape[1] > self.max_length:
            raise ValueError(f"a text may have at most {self.max_length} tokens, got {input_ids.shape[1]}")
        checked_mask("text_mask", text_mask, input_ids.shape)

    def _embed(self, ids_BL: Tensor, mask_BL: Tensor | None = None, first: int = 0) -> Tensor:
        """Words and positions; ``first`` tokens were there before."""
        if mask_BL is None:
            place = self.positions.weight[first : first + ids_BL.shape[1]]
        else:
            place = self.positions(mask_BL.cumsum(dim=1).sub(1).clamp(min=0))
            ids_BL = ids_BL.masked_fill(~mask_BL, self.config["pad_id"])
        x_BLD = self.words(ids_BL) + place
        x_BLD = x_BLD if self.config["norm_first"] else self.norm(x_BLD)
        return F.dropout(x_BLD, self.dropout, self.training)

    def _last_norm(self, x_BLD: Tensor) -> Tensor:
        return self.norm(x_BLD) if self.config["norm_first"] else x_BLD

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.words.weight) if self.output is None else self.output(x)

    @torch.no_grad()
    def generate(
        self,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        present: Tensor | None = None,
        *,
        prompt: Tensor | None = None,
        batch_size: int | None = None,
        method: Literal["greedy", "beam", "nucleus"] = "greedy",
        max_length: int | None = None,
        min_length: int = 0,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        num_return: int | None = None,
        top_p: float = 0.9,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        no_repeat_ngram: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        use_cache: bool = True,
    ) -> Generated:
        """Write a text for every row of the context, dropout off.

        Args:
            context: ``(B, K, C)``, as in ``forward``; None = texts without a context.
            context_mask: ``(B, K)`` bool.
            present: ``(B,)`` bool.
            prompt: ``(B, P)`` ids to go on from, without padding; None = BOS alone.
            batch_size: Rows B where neither context nor prompt tells.
            method: ``greedy``, ``beam`` or ``nucleus``: see ``polyfuse.models.generation`` for each and its arguments.
            max_length: Most tokens to generate, EOS included; None = as many as there are positions.
            min_length: Tokens that must come before EOS.
            num_beams: Of ``beam``.
            length_penalty: Of ``beam``.
            early_stopping: Of ``beam``.
            num_return: Of ``beam``.
            top_p: Of ``nucleus``.
            temperature: Of ``nucleus``.
            generator: Of ``nucleus``.
            no_repeat_ngram: No n-gram of this size comes twice in a row; 0 = allowed.
            bos_id: None = the model's; so for the next two.
            eos_id: Ends a row.
            pad_id: Stands behind EOS.
            use_cache: False computes every token anew at every step: slow, the same up to rounding.

        Returns:
            ``ids (B, L)`` without the prompt, ``scores (B,)``, ``lengths (B,)``.

        Raises:
            ValueError: If an argument is out of range, or does not fit the model.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        ids = {name: self.config[name] for name in ("bos_id", "eos_id", "pad_id")}
        given = {"bos_id": bos_id, "eos_id": eos_id, "pad_id": pad_id}
        ids |= {name: value for name, value in given.items() if value is not None}
        for name, value in ids.items():
            self._check_id(name, value)
        prompt = self._prompt(prompt, context, batch_size, ids.pop("bos_id"))
        room = self.max_length - prompt.shape[1] + 1  # the last token is never read
        if max_length is not None and max_length > room:
            raise ValueError(
                f"max_length must be at most {room} ({self.max_length} positions, a prompt of {prompt.shape[1]}), "
                f"got {max_length}"
            )
        length = room if max_length is None else max_length
        common: dict[str, Any] = {
            **ids,
            "max_length": length,
            "min_length": min_length,
            "no_repeat_ngram": no_repeat_ngram,
        }
        with evaluating(self):
            states, mask = self.read_context(context, context_mask, present, batch=prompt.shape[0])
            step = DecoderStep(self, states, mask, prompt.shape[1] + length - 1 if use_cache else None)
            common["reorder"] = step.reorder
            if method == "beam":
                return beam_search(
                    step,
                    prompt,
                    num_beams=num_beams,
                    length_penalty=length_penalty,
                    early_stopping=early_stopping,
                    num_return=num_return,
                    **common,
                )
            if method == "nucleus":
                return nucleus(step, prompt, top_p=top_p, temperature=temperature, generator=generator, **common)
            return greedy(step, prompt, **common)

    def _prompt(self, prompt: Tensor | None, context: Tensor | None, batch_size: int | None, bos_id: int) -> Tensor:
        """The prompt, or BOS for every row."""
        if prompt is None:
            batch = batch_size if context is None else context.shape[0]
            if batch is None:
                raise ValueError("how many texts? give context, prompt or batch_size; got none of them")
            return torch.full((batch, 1), bos_id, device=self.words.weight.device)
        if prompt.ndim == 2 and prompt.shape[1] > self.max_length:
            raise ValueError(f"a prompt may have at most {self.max_length} tokens, got {prompt.shape[1]}")
        return prompt

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", encoder: nn.Module | None = None
    ) -> Self:
        """Read what ``save_pretrained`` wrote; a captioner that had an encoder needs one of the same shape again.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the folder holds another model, or its weights do not fit.
        """
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if settings.get("model") != cls.__name__:
            raise ValueError(f"{folder} holds a {settings.get('model')!r}, expected a {cls.__name__!r}")
        state = read_tensors(Path(folder) / "model.safetensors")
        if encoder is None and any(name.startswith("encoder.") for name in state):
            raise ValueError(
                f"the captioner in {folder} was saved with its encoder: pass encoder=, built as it was then"
            )
        with torch.device("meta"):
            model = cls(**settings["config"])
        model.encoder = encoder
        return model._take(state, where=str(folder)).to(device).eval()


def captioner_tiny(**kwargs: Any) -> Captioner:
    """97 ids, width 32, 2 layers, 2 heads, 20 positions: for tests."""
    tiny = {"vocab_size": 97, "dim": 32, "num_layers": 2, "num_heads": 2, "max_length": 20}
    return Captioner(**{**tiny, **kwargs})


def captioner_base(**kwargs: Any) -> Captioner:
    """The decoder of the base Transformer (512 wide, 6 layers, 8 heads) over BERT's ids and 768-wide states."""
    base = {"vocab_size": 30522, "dim": 512, "num_layers": 6, "num_heads": 8, "context_dim": 768, "max_length": 128}
    return Captioner(**{**base, "bos_id": 101, "eos_id": 102, "pad_id": 0, **kwargs})
