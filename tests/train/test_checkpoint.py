from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from polyfuse.errors import UserError
from polyfuse.train.checkpoint import (
    LAST,
    append_metrics,
    clear_temporary,
    cut_metrics,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_checkpoint,
    read_metrics,
    read_state,
    write_checkpoint,
)


class Extra(nn.Module):
    """A module with a tied weight, a view, a buffer and a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.note = "fresh"

    def get_extra_state(self) -> str:
        return self.note

    def set_extra_state(self, state: str) -> None:
        self.note = state


def test_everything_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Extra()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.b(model.a(torch.ones(2, 3))).sum().backward()
    optimizer.step()
    model.note, model.count = "trained", torch.tensor(7)
    tensors, extra = model_tensors(model)
    write_checkpoint(tmp_path / "c", tensors | optimizer_tensors(optimizer), {"extra": extra, "step": 3, "loss": 0.1})

    other, checkpoint = Extra(), read_checkpoint(tmp_path / "c")
    again = torch.optim.AdamW(other.parameters(), lr=0.5)
    load_model(other, checkpoint)
    load_optimizer(again, checkpoint)
    assert (other.note, int(other.count), checkpoint.state["step"], checkpoint.state["loss"]) == ("trained", 7, 3, 0.1)
    assert other.b.weight is other.a.weight
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][name], again.state[b][name]), name
    assert again.param_groups[0]["lr"] == 0.5  # a rate is a function of the step, not of the file


def test_the_old_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, {"x": torch.ones(2)}, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, {"x": torch.zeros(2)}, {"step": 2})
    assert read_checkpoint(path).state == read_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("polyfuse.train.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"the checkpoint cannot be written .*No space left on device") as error:
        write_checkpoint(tmp_path / "c", {"x": torch.ones(2)}, {"step": 1})
    assert error.value.filename == str(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_half_written_files_are_cleared(tmp_path: Path) -> None:
    folder = (tmp_path / LAST).parent
    folder.mkdir()
    for name in (".last.safetensors.12.tmp", ".best.safetensors.9.tmp", ".keep"):
        (folder / name).touch()
    clear_temporary(tmp_path)
    assert [p.name for p in folder.iterdir()] == [".keep"]


def test_views_and_slices_are_stored_as_their_own(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    write_checkpoint(tmp_path / "c", {"row": base[1], "columns": base[:, 1:3], "whole": base, "same": base}, {})
    tensors = read_checkpoint(tmp_path / "c").tensors
    assert torch.equal(tensors["columns"], base[:, 1:3])
    assert torch.equal(tensors["row"], base[1])
    assert torch.equal(tensors["same"], base)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert cut_metrics(path, 0) == []
    append_metrics(path, {"step": 1})
    size = path.stat().st_size
    append_metrics(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"st')
    assert cut_metrics(path, size) == [{"step": 1}] == read_metrics(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(UserError, match=r"no checkpoint at .*none"):
        read_checkpoint(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="text' is not a readable checkpoint"):
        read_checkpoint(tmp_path / "text")
    for told in ("{", "[1]"):
        save_file({"x": torch.ones(1)}, tmp_path / "odd", metadata={"polyfuse": told})
        with pytest.raises(UserError, match="odd' is not a"):
            read_checkpoint(tmp_path / "odd")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(UserError, match="foreign' is not a polyfuse checkpoint of format 1"):
        read_checkpoint(tmp_path / "foreign")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", model_tensors(nn.Linear(2, 3))[0], {})
    with pytest.raises(UserError, match=r"does not fit this model: .*size mismatch for weight"):
        load_model(nn.Linear(2, 2), read_checkpoint(tmp_path / "c"))
