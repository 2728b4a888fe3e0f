"""Rules between names: both ways exact, and every fault of a checkpoint named."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from polyfuse.models.convert import (
    Rule,
    one_precision,
    read_original,
    read_tensors,
    rule,
    rules_for,
    strip_prefix,
    tensors_of,
    write_original,
)

A, B, C = 3, 5, 7
RULES = [
    Rule("qkv", ("q", "k", "v")),
    rule("turned", "matrix", transpose=True),
    Rule("flat", ("cube",), shape=(A, B), original_shape=(A, B, 1, 1)),
    Rule("table", ("words",), copies=("decoder", "again")),
    *rules_for("norm", "LayerNorm"),
]


def original() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {name: torch.randn(A, B) for name in ("q", "k", "v", "words")}
    state |= {"matrix": torch.randn(B, C), "cube": torch.randn(A, B, 1, 1)}
    state |= {"LayerNorm.weight": torch.randn(C), "LayerNorm.bias": torch.randn(C)}
    return state | {"decoder": state["words"].clone(), "again": state["words"].clone()}


def expected() -> dict[str, Tensor]:
    shapes = {
        "qkv": (3 * A, B),
        "turned": (C, B),
        "flat": (A, B),
        "table": (A, B),
        "norm.weight": (C,),
        "norm.bias": (C,),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def read(state: dict[str, Tensor], **more: object) -> dict[str, Tensor]:
    options = {"ignored": lambda key: key == "index", "expected": expected(), "name": "Toy", **more}
    return read_original(state, RULES, **options)  # type: ignore[arg-type]


def test_both_ways_bit_for_bit() -> None:
    state = original()
    ours = read({**state, "index": torch.zeros(1)})
    assert torch.equal(ours["qkv"], torch.cat((state["q"], state["k"], state["v"])))
    assert torch.equal(ours["turned"], state["matrix"].T)
    assert torch.equal(ours["flat"], state["cube"][..., 0, 0])
    back = write_original(ours, RULES)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key
        assert back[key].shape == value.shape
        assert back[key].is_contiguous()
    back["q"].zero_()  # nothing is shared with what was read or with our tensors
    ours["table"].zero_()
    assert state["q"].any()
    assert state["words"].any()
    assert ours["qkv"][:A].any()


def test_copies_may_be_left_out() -> None:
    state = original()
    del state["decoder"], state["again"]
    assert torch.equal(read(state)["table"], state["words"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": None}, "this checkpoint does not fit Toy: missing k"),
        ({"extra": torch.zeros(1)}, "cannot map extra"),
        ({"words": torch.zeros(A, B + 1)}, r"words is \(3, 6\), expected \(3, 5\)"),
        ({"matrix": torch.zeros(C, B)}, r"matrix is \(5, 7\), expected \(7, 5\)"),
        ({"k": torch.zeros(A, B + 1)}, r"q, k, v cannot be stacked: \[\(3, 5\), \(3, 6\), \(3, 5\)\]"),
        ({"k": torch.zeros(A + 1, B)}, r"q, k, v is \(10, 5\), expected \(9, 5\)"),
        ({"decoder": torch.ones(A, B)}, "decoder differs from words"),
        ({"decoder": torch.ones(A, B + 1)}, "decoder differs from words"),
    ],
)
def test_faults_are_named(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in {**original(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read(state)


def test_all_faults_are_told_ten_shown() -> None:
    with pytest.raises(ValueError, match="missing k; missing v; cannot map a"):
        read({**{key: value for key, value in original().items() if key not in ("k", "v")}, "a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"cannot map extra9; and 3 more$"):
        read({**original(), **{f"extra{i}": torch.zeros(1) for i in range(13)}})


def test_rules_must_cover_our_side() -> None:
    with pytest.raises(ValueError, match="nothing fills head"):
        read(original(), expected={**expected(), "head": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"words has no place \(table\)"):
        read(original(), expected={key: value for key, value in expected().items() if key != "table"})


def test_prefixes() -> None:
    state = {"module.a": torch.zeros(1), "module.b": torch.ones(1)}
    assert list(strip_prefix(state, "model.", "module.")) == ["a", "b"]
    mixed = {"module.a": torch.zeros(1), "b": torch.ones(1)}
    assert strip_prefix(mixed, "module.") == mixed
    assert strip_prefix({}, "module.") == {}
    deep = {f"module._orig_mod.module.{name}": torch.zeros(1) for name in "ab"}
    assert list(strip_prefix(deep, "module.", "_orig_mod.")) == ["a", "b"]
    assert list(strip_prefix(deep, "module.")) == ["_orig_mod.module.a", "_orig_mod.module.b"]


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_files_of_tensors(tmp_path: Path, wrapper: str | None) -> None:
    state = original()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "b.bin")
    for name in ("a.safetensors", "b.bin"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_tensors_in_memory(wrapper: str | None) -> None:
    state = original()
    found = tensors_of(state if wrapper is None else {wrapper: state, "epoch": 3})
    assert found == state
    assert found is not state
    with pytest.raises(ValueError, match="the checkpoint must hold named tensors, got int under 'epoch'"):
        tensors_of({**state, "epoch": 3})
    with pytest.raises(ValueError, match="the checkpoint must hold named tensors, got the name 3"):
        tensors_of({3: torch.zeros(1)})


def test_one_precision_is_the_widest() -> None:
    half, single, number = torch.tensor([1.5]).half(), torch.tensor([0.1]), torch.tensor([7])
    found = one_precision({"a": half, "b": single, "c": number})
    assert [value.dtype for value in found.values()] == [torch.float32, torch.float32, torch.int64]
    assert found["a"] == 1.5
    assert one_precision({"a": half, "c": number})["a"] is half
    assert one_precision({"a": half, "b": half.bfloat16()})["b"].dtype == torch.float32
    assert one_precision({"a": half}, least=torch.float32)["a"].dtype == torch.float32
    assert one_precision({"a": single.double()}, least=torch.float32)["a"].dtype == torch.float64


class _Malicious:
    """Unpickled the usual way it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"weight": torch.zeros(1), "payload": _Malicious(mark)}, tmp_path / "zip.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"payload": _Malicious(mark)}))
    for name in ("zip.bin", "plain.bin"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as tensors \(weights_only=True\)"):
            read_tensors(tmp_path / name)
    assert not mark.exists()
    torch.load(tmp_path / "zip.bin", weights_only=False)  # the file does what it says
    assert mark.exists()


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*nowhere\.bin"):
        read_tensors(tmp_path / "nowhere.bin")
    (tmp_path / "text.safetensors").write_text("hello, this is not a file of tensors")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a safetensors file"):
        read_tensors(tmp_path / "text.safetensors")
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.bin cannot be read as tensors"):
        read_tensors(tmp_path / "text.bin")
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="must hold named tensors, got list"):
        read_tensors(tmp_path / "list.bin")
    torch.save({"a": torch.zeros(1), "b": 3}, tmp_path / "mixed.bin")
    with pytest.raises(ValueError, match=r"must hold named tensors, got .*int.* under 'b'"):
        read_tensors(tmp_path / "mixed.bin")
    torch.save({3: torch.zeros(1)}, tmp_path / "numbers.bin")
    with pytest.raises(ValueError, match="must hold named tensors, got the name 3"):
        read_tensors(tmp_path / "numbers.bin")
