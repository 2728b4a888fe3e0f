"""ViLBERT's published sizes, and a tiny one."""

from typing import Any

from polyfuse.models.vilbert import ViLBERT


def _built(kwargs: dict[str, Any], **defaults: Any) -> ViLBERT:
    return ViLBERT(**{**defaults, **kwargs})


def _connected(number: int, num_layers: int) -> dict[str, Any]:
    """As many region layers as connections, which stand before the last ``number`` text layers."""
    places = {"text_connections": tuple(range(num_layers - number, num_layers))}
    return {"region_layers": number, "region_connections": tuple(range(number)), **places}


_LARGE: dict[str, Any] = {"dim": 1024, "num_layers": 24, "num_heads": 16, "hidden_dim": 4096}


def vilbert_base(**kwargs: Any) -> ViLBERT:
    """6 connections, 246.7 M parameters without heads; the released checkpoints are of this size."""
    return _built(kwargs)


def vilbert_base_2(**kwargs: Any) -> ViLBERT:
    """2 connections."""
    return _built(kwargs, **_connected(2, 12))


def vilbert_base_4(**kwargs: Any) -> ViLBERT:
    """4 connections."""
    return _built(kwargs, **_connected(4, 12))


def vilbert_base_8(**kwargs: Any) -> ViLBERT:
    """8 connections."""
    return _built(kwargs, **_connected(8, 12))


def vilbert_large_2(**kwargs: Any) -> ViLBERT:
    """BERT-large with 2 connections."""
    return _built(kwargs, **_LARGE, **_connected(2, 24))


def vilbert_large_4(**kwargs: Any) -> ViLBERT:
    """BERT-large with 4 connections."""
    return _built(kwargs, **_LARGE, **_connected(4, 24))


def vilbert_large_6(**kwargs: Any) -> ViLBERT:
    """BERT-large with 6 connections."""
    return _built(kwargs, **_LARGE, **_connected(6, 24))


def vilbert_roberta(**kwargs: Any) -> ViLBERT:
    """RoBERTa-base with 6 connections.

    Positions start at 0, as they do in the original in effect: its ``RobertaEmbeddings`` computes positions from 2, and
    the class below it computes them again from 0. ``first_position=2`` is what RoBERTa's own weights were trained with.
    """
    return _built(kwargs, vocab_size=50265, max_length=514, type_vocab_size=1)


def vilbert_tiny(**kwargs: Any) -> ViLBERT:
    """The same wiring with 2 connections and small numbers, for tests and trials."""
    small = {
        "vocab_size": 61,
        "dim": 32,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 64,
        "max_length": 20,
        "feature_dim": 24,
        "region_dim": 40,
        "region_heads": 4,
        "region_hidden_dim": 48,
        "region_classes": 17,
        "co_dim": 24,
        "co_heads": 2,
    }
    return _built(kwargs, **small, **_connected(2, 3))
