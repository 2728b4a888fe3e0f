"""Resampling: the groups of a run's own test rows, and nothing that is not there counts as a score."""

import numpy as np
import pyarrow as pa
import pytest

from polyfuse.studies.differences import Sampled, worst_modality
from polyfuse.studies.ledger import Ledger
from polyfuse.studies.results import Records

PEOPLE, VISITS = 10, 6


def records(worse: float) -> pa.Table:
    """Five splits, each tested on two of ten people; every loss of an arm is the same."""
    tables = []
    keys = np.arange(PEOPLE * VISITS) + 1
    facts = Records("htad", "", 0, "", 0)
    facts.add("data", "groups", PEOPLE, values=np.repeat(np.arange(PEOPLE), VISITS), keys=keys)
    tables.append(facts.table())
    for split in range(PEOPLE // 2):
        mine = keys[2 * VISITS * split : 2 * VISITS * (split + 1)]
        for arm, loss in (("reference", 0.4 + worse), ("default", 0.4)):
            out = Records("htad", "", split, arm, 0)
            for subset in ("audio", "audio+motion"):
                kept = mine if subset == "audio" else mine[:1]  # one row alone has everything
                out.add("row", "loss", loss, len(kept), subset=subset, values=np.full(len(kept), loss), keys=kept)
            tables.append(out.table())
    return pa.concat_tables(tables)


def test_groups_that_a_sample_misses_are_no_perfect_score() -> None:
    sampled = Sampled(Ledger(records(0.3)), "htad", 500)
    for runs in sampled.arms.values():
        for scores in runs.values():
            for name in ("mean", "worst"):
                assert np.isfinite(scores[name]).all()
                assert np.ptp(scores[name]) < 1e-12
            missed = np.isnan(scores["complete"])
            assert 0.2 < missed[1:].mean() < 0.3  # a person of two is in none of the draws of a sample: 1/4
            assert not missed[0]
    for found in sampled.compare("default", "reference"):
        d = found.difference
        assert [d.mean, d.low, d.high] == pytest.approx([0.3] * 3, abs=1e-6), d.quantity


def test_runs_of_the_same_rows_share_their_draws() -> None:
    table = records(0.1)
    split = table.column_names.index("split")
    whole = table.set_column(split, "split", pa.array([0] * len(table), table.schema.field("split").type))
    seeds = pa.array(table["split"].to_pylist(), table.schema.field("seed").type)
    whole = whole.set_column(table.column_names.index("seed"), "seed", seeds)
    one, other = (list(Sampled(Ledger(t), "htad", 50).arms["default"].values()) for t in (table, whole))
    assert len(one) == len(other) == PEOPLE // 2
    assert np.array_equal(one[0]["mean"], other[0]["mean"])


def test_the_worst_input_of_what_is_there() -> None:
    nothing, half = np.array([np.nan, np.nan]), np.array([0.5, np.nan])
    found = worst_modality({("audio", "stuck"): half, ("audio", "scaled 4"): nothing, ("motion", "stuck"): half + 0.2})
    assert found is not None
    np.testing.assert_allclose(found, [0.5, np.nan])
