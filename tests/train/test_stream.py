from typing import Any

import pytest
import torch

from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import corrupt, fit_scales
from polyfuse.data.missing import mean_rate
from polyfuse.train import stream as module
from polyfuse.train.stream import Masking, Step, Stream

NAMES = ("a", "b", "c")


def make_table(rows: int) -> Batch:
    g = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {
        "a": torch.arange(rows * 2.0).view(rows, 2),
        "b": torch.randn(rows, 3, generator=g),
        "c": {"values": torch.randn(rows, 5, 2, generator=g), "mask": torch.ones(rows, 5, dtype=torch.bool)},
    }
    present = torch.rand(rows, 3, generator=g) > 0.2
    return Batch(NAMES, inputs, present, torch.arange(rows), torch.arange(rows) * 7, [str(i) for i in range(rows)])


def rows_of(step: Step) -> list[int]:
    return [row for part in step.passes if part.weight for row in part.batch.target.tolist()]


def content(steps: list[Step]) -> list[Any]:
    return [
        (
            s.number,
            s.rows,
            p.weight,
            p.batch.target,
            p.batch.present,
            p.batch.inputs["b"],
            p.batch.inputs["c"]["values"],
        )
        for s in steps
        for p in s.passes
    ]


def assert_same(a: list[Step], b: list[Step]) -> None:
    assert len(content(a)) == len(content(b)) > 0
    for left, right in zip(content(a), content(b), strict=True):
        for x, y in zip(left, right, strict=True):
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))


@pytest.mark.parametrize("block_steps", [1, 3, 64])
def test_every_row_once_per_epoch_with_its_own_content(monkeypatch: pytest.MonkeyPatch, block_steps: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_STEPS", block_steps)
    table = make_table(31)
    steps = list(Stream(table, 7, accumulate=2).epoch(0))
    assert [step.rows for step in steps] == [7, 7, 7, 7, 3]
    assert sorted(row for step in steps for row in rows_of(step)) == list(range(31))
    for step in steps:
        assert [len(p.batch) for p in step.passes] == ([4, 3] if step.rows == 7 else [2, 1])
        for part in step.passes:
            assert torch.equal(part.batch.inputs["a"], table.inputs["a"][part.batch.target])
            assert torch.equal(part.batch.present, table.present[part.batch.target])


def test_epochs_differ_and_repeat() -> None:
    stream = Stream(make_table(31), 7, masking=Masking(0.5, corruption=0.3), seed=3)
    assert [rows_of(s) for s in stream.epoch(0)] != [rows_of(s) for s in stream.epoch(1)]
    assert_same(list(stream.epoch(1)), list(stream.epoch(1)))


@pytest.mark.parametrize("start", range(5))
def test_an_epoch_taken_up_in_the_middle_is_the_same(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_STEPS", 2)
    stream = Stream(make_table(31), 7, masking=Masking(0.5, corruption=0.5))
    assert_same(list(stream.epoch(2))[start:], list(stream.epoch(2, start)))


def test_processes_share_a_step() -> None:
    table, masking = make_table(31), Masking(0.5, corruption=0.5, kinds=("noise",))
    whole = list(Stream(table, 6, masking=masking).epoch(1))
    shares = [list(Stream(table, 6, masking=masking, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for step, left, right in zip(whole, *shares, strict=True):
        assert step.rows == left.rows == right.rows
        assert sorted(rows_of(step)) == sorted(rows_of(left) + rows_of(right))
        passes = [part for share in (left, right) for part in share.passes]
        seen = {row: part.batch.inputs["b"][i] for part in passes for i, row in enumerate(part.batch.target.tolist())}
        for i, row in enumerate(rows_of(step)):
            assert torch.equal(step.passes[0].batch.inputs["b"][i], seen[row])
    last = shares[1][-1]  # one row is left for two processes
    assert [(len(p.batch), p.weight) for p in last.passes] == [(1, 0.0)]


def test_dropout_keeps_one_and_has_the_law_of_its_policy() -> None:
    table = make_table(4001).with_present(torch.ones(4001, 3, dtype=torch.bool))
    stream = Stream(table, 64, masking=Masking(0.5))
    present = stream.presence(0)
    assert present.any(dim=1).all()
    assert (~present).float().mean() == pytest.approx(mean_rate(0.5, 3), abs=0.01)
    dropped, offered = stream.drop_counts(0, stream.steps_per_epoch)
    assert (dropped, offered) == (int((~present).sum()), present.numel())
    part = stream.drop_counts(0, 2)
    rows = [r for s in list(stream.epoch(0))[:2] for r in rows_of(s)]
    assert part == (int((~present[rows]).sum()), len(rows) * 3)
    assert not torch.equal(stream.presence(1), present)


def test_stratified_dropout_thins_a_share_of_the_rows() -> None:
    table = make_table(6007).with_present(torch.ones(6007, 3, dtype=torch.bool))
    sizes = Stream(table, 64, masking=Masking(0.6, "stratified")).presence(0).sum(dim=1)
    shares = [(sizes == n).float().mean().item() for n in (1, 2, 3)]
    assert shares == pytest.approx([0.2, 0.2, 0.6], abs=0.02)


def test_absent_inputs_never_come_back() -> None:
    table = make_table(101)
    for masking in (Masking(0.5), Masking(0.9, "stratified")):
        assert not (Stream(table, 8, masking=masking).presence(0) & ~table.present).any()


def test_corruption_is_that_of_the_data_layer_on_the_whole_block() -> None:
    table = make_table(29)
    stream = Stream(table, 8, masking=Masking(corruption=0.5), seed=5)
    steps = list(stream.epoch(4))
    order = torch.cat([p.batch.target for s in steps for p in s.passes])
    expected = corrupt(table.rows(order), 0.5, 5, 4, scales=fit_scales(table))
    got = torch.cat([p.batch.inputs["b"] for s in steps for p in s.passes])
    assert torch.equal(got, expected.inputs["b"])
    assert not torch.equal(got, table.inputs["b"][order])


def test_a_batch_larger_than_the_table_is_the_table() -> None:
    stream = Stream(make_table(5), 64)
    assert stream.steps_per_epoch == 1
    assert [s.rows for s in stream.epoch(0)] == [5]
