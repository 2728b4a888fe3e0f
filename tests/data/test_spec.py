import json

import pytest
import torch

from polyfuse.data.spec import OPTIONS, ModalitySpec, TargetSpec, empty_input, input_layout

SPECS = {
    "image": {"size": 7},
    "text": {"vocab_size": 31, "max_length": 5},
    "audio": {"rate": 1000, "samples": 11},
    "tabular": {"numeric": 2, "cardinalities": [3, 5, 7]},
    "series": {"channels": 2, "length": 13},
    "vector": {"width": 17},
    "video": {"frames": 3, "size": 7},
    "points": {"count": 19, "channels": 5},
}


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_empty_input_has_the_layout_and_is_zero(kind: str) -> None:
    spec = ModalitySpec("m", kind, SPECS[kind])
    value = empty_input(spec, 3)
    parts = value if isinstance(value, dict) else {"": value}
    assert {k: (tuple(t.shape[1:]), t.dtype) for k, t in parts.items()} == input_layout(spec)
    assert all(len(t) == 3 and not t.any() for t in parts.values())
    assert ModalitySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_forms_are_those_encoders_take() -> None:
    layout = {k: input_layout(ModalitySpec("m", k, v)) for k, v in SPECS.items()}
    assert layout["image"] == {"": ((3, 7, 7), torch.uint8)}
    assert layout["text"] == {"ids": ((5,), torch.int32), "mask": ((5,), torch.bool)}
    assert layout["tabular"]["categorical"] == ((3,), torch.int64)
    assert layout["series"] == {"values": ((13, 2), torch.float32), "mask": ((13,), torch.bool)}


def test_target_round_trip_and_outputs() -> None:
    for target in (TargetSpec("classification", ("1.0", "b")), TargetSpec("regression", (), 3.5, 2.25)):
        assert TargetSpec.from_dict(json.loads(json.dumps(target.to_dict()))) == target
    assert TargetSpec("multilabel", ("a", "b", "c")).outputs == 3
    assert TargetSpec("regression").outputs == 1


def test_wrong_specs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"type of modality 'm' must be one of .*, got 'smell'"):
        ModalitySpec("m", "smell")
    with pytest.raises(ValueError, match=r"lacks \['max_length'\], got \['vocab_size'\]"):
        ModalitySpec("m", "text", {"vocab_size": 9})
    with pytest.raises(ValueError, match=r"task must be one of .*, got 'ranking'"):
        TargetSpec("ranking")
    with pytest.raises(TypeError, match="option 'size' of modality 'm' must be an int, got '7'"):
        input_layout(ModalitySpec("m", "image", {"size": "7"}))
    with pytest.raises(TypeError, match="option 'cardinalities' of modality 'm' must be a list, got 3"):
        input_layout(ModalitySpec("m", "tabular", {"numeric": 1, "cardinalities": 3}))
