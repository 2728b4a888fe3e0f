"""The base of the named models: folders, heads by task name, weights that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.pretrained import PretrainedModel, arguments


class Toy(PretrainedModel):
    LAYOUTS = ("new", "old")

    def __init__(
        self,
        *,
        dim: int = 3,
        names: tuple[str, ...] = ("a", "b"),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        self.layer = nn.Linear(dim, 5, device=device, dtype=dtype)
        self.register_buffer("steps", torch.arange(4, device=device), persistent=False)

    def _fill_meta_buffers(self) -> None:
        self.steps = torch.arange(4)

    @classmethod
    def original_config(cls, state: Any, config: Any) -> dict[str, Any]:
        return {"dim": state["fc.weight"].shape[1]} if config is None else {"dim": config["width"]}

    @classmethod
    def original_heads(cls, state: Any, config: Any) -> dict[str, dict[str, Any]]:
        return {"vqa": {"num_classes": state["cls.weight"].shape[0]}} if "cls.weight" in state else {}

    def original_rules(self, state: Any, layout: str | None) -> Any:
        rules = [Rule("layer.weight", ("fc.weight",), copies=("tied.weight",)), Rule("layer.bias", ("fc.bias",))]
        for task in self.heads:
            rules += rules_for(f"heads.{task}", "cls")
        return rules, lambda key: key == "index"


class Other(Toy):
    pass


def _head(model: Toy, num_classes: int = 7) -> nn.Module:
    return nn.Linear(5, num_classes, device=model.layer.weight.device)


def _any(model: Toy, **kwargs: Any) -> nn.Module:
    return _head(model, **kwargs)


Toy.HEADS = {"any": _any, "vqa": _head, "itm": lambda model: _head(model, 2)}


def original() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {"fc.weight": torch.randn(5, 3), "fc.bias": torch.randn(5)}
    return state | {"cls.weight": torch.randn(11, 5), "cls.bias": torch.randn(11)}


def test_arguments_are_what_json_can_keep() -> None:
    assert Toy(names=("x",)).config == {"dim": 3, "names": ["x"]}
    assert json.loads(json.dumps(Toy().config)) == Toy().config
    assert arguments({"self": 1, "device": 2, "a": {3: (1, {"b": ()})}}) == {"a": {"3": [1, {"b": []}]}}


def test_folder_round_trip_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Toy(dim=2).attach("vqa", num_classes=13).attach("itm")
    with torch.no_grad():
        model.layer.weight[0] = torch.tensor([torch.nan, -0.0])
    folder = model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    read = Toy.from_pretrained(folder)
    assert not read.training
    assert read.config == model.config
    assert read.head_config == {"vqa": {"num_classes": 13}, "itm": {}}
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key].view(torch.int32), value.view(torch.int32)), key
    assert torch.equal(read.steps, torch.arange(4))  # not saved, and not left on the meta device
    assert not any(tensor.is_meta for tensor in (*read.parameters(), *read.buffers()))
    half = Toy(dtype=torch.bfloat16)
    assert Toy.from_pretrained(half.save_pretrained(tmp_path / "half")).layer.weight.dtype == torch.bfloat16


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    Toy().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'Toy', expected a 'Other'"):
        Other.from_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"layer.weight": state["layer.weight"]}, "do not fit Toy: missing layer.bias"),
        ({**state, "more": torch.zeros(1)}, "unexpected more"),
        ({**state, "layer.bias": torch.zeros(4)}, r"layer.bias is \(4,\), expected \(5,\)"),
        ({**state, **{f"more{i:02}": torch.zeros(1) for i in range(13)}}, "unexpected more09; and 3 more"),
    ]
    for wrong, message in cases:
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            Toy.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        Toy.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Toy.from_pretrained(tmp_path / "nowhere")


def test_heads_go_by_name() -> None:
    model = Toy().attach("vqa", "itm")
    assert model.asked(None) == ["vqa", "itm"]
    assert model.asked(["itm"]) == ["itm"]
    assert model.asked(()) == []
    old = model.heads["vqa"]
    assert model.attach("vqa", num_classes=2).heads["vqa"] is not old
    assert model.head_config["vqa"] == {"num_classes": 2}
    with pytest.raises(ValueError, match="Toy has no head for 'vqaa'; it has: any, itm, vqa"):
        model.attach("vqaa")
    with pytest.raises(ValueError, match=r"no head attached for \['mlm'\]; attached: \['vqa', 'itm'\]; call .attach"):
        model.asked(["vqa", "mlm"])
    with pytest.raises(ValueError, match="it has: none"):
        PretrainedModel().attach("vqa")


@pytest.mark.parametrize("kind", ["mapping", "safetensors", "bin"])
def test_original_round_trip_bit_for_bit(kind: str, tmp_path: Path) -> None:
    state = original()
    source: Any = state
    if kind == "safetensors":
        save_file(state, source := tmp_path / "a.safetensors")
    elif kind == "bin":
        torch.save({"state_dict": state}, source := str(tmp_path / "a.bin"))
    (tmp_path / "config.json").write_text('{"width": 3}')
    for config in (None, {"width": 3}, tmp_path / "config.json", str(tmp_path / "config.json")):
        model = Toy.from_original(source, config)
        assert not model.training
        assert torch.equal(model.steps, torch.arange(4))
        written = model.to_original()
        assert written.keys() == state.keys()  # without the tied copy, which was not there
        assert all(torch.equal(written[key], value) for key, value in state.items())
    with torch.no_grad():
        Toy.from_original(state).layer.weight.zero_()
    assert state["fc.weight"].any()  # the caller's tensors are his


def test_copies_are_written_as_they_were_read() -> None:
    state = original()
    tied = {**state, "tied.weight": state["fc.weight"].clone(), "index": torch.arange(3)}
    assert Toy.from_original(tied).to_original().keys() == tied.keys() - {"index"}
    assert Toy.from_original(state).to_original("new").keys() == state.keys() | {"tied.weight"}  # by name: all of it
    assert Toy().to_original().keys() == {"fc.weight", "fc.bias", "tied.weight"}


def test_originals_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not fit Toy: fc.weight is \(5, 3\), expected \(5, 4\)"):
        Toy.from_original(original(), {"width": 4})
    with pytest.raises(ValueError, match="layout must be one of new, old, got 'older'"):
        Toy.from_original(original(), layout="older")
    with pytest.raises(ValueError, match="layout must be one of new, old, got 'older'"):
        Toy().to_original("older")


def test_models_without_an_original_say_so() -> None:
    class Bare(PretrainedModel):
        pass

    with pytest.raises(NotImplementedError, match="Bare has no original layout"):
        Bare.from_original({})
    with pytest.raises(NotImplementedError, match="Bare has no original layout"):
        Bare().to_original()


def test_a_head_names_the_arguments_that_it_has() -> None:
    with pytest.raises(ValueError, match="head 'vqa' has no argument 'num_class'; did you mean 'num_classes'"):
        Toy().attach("vqa", num_class=3)
    with pytest.raises(ValueError, match="head 'itm' has no argument 'size'; known: none"):
        Toy().attach("itm", size=3)
    with pytest.raises(ValueError, match="head 'any' has no argument 'size'"):
        Toy().attach("any", size=3)
    assert Toy().attach("any", num_classes=3).heads["any"].out_features == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json' cannot be read as JSON"),
        ("[]", "config.json' must hold a mapping with 'model', 'config' and 'heads'"),
        ('{"model": "Toy", "config": {}}', "config.json' must hold a mapping"),
        ('{"model": "Toy", "config": {"dimm": 3}, "heads": {}}', "config.json' makes no Toy: .*dimm"),
        ('{"model": "Toy", "config": {}, "heads": {"vqa": {"sizes": 1}}}', "config.json' makes no Toy: head 'vqa'"),
    ],
)
def test_a_broken_settings_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    Toy().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Toy.from_pretrained(tmp_path)
