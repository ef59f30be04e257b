"""Step reports: what a step computed, how long it took, and what was to be expected of it."""

import threading
from dataclasses import replace

import pytest

from ridgeline.engine.plan import Chunk, Proposal, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.engine.steps import StepEstimate, StepLog, StepRecord, StepReport, StepShape
from tests.engine.fake_model import fake_core, results
from tests.engine.proposers import Always


def shape(*chunks):
    return StepShape.of(StepPlan(tuple(Chunk(None, rows, past, (), 1) for rows, past in chunks), ()))


class Estimates:
    """Expects the same of every step."""

    def __init__(self, found):
        self.found = found

    def estimate(self, shape):
        return self.found


@pytest.mark.parametrize(
    ("chunks", "kind", "rows", "prefill_rows", "context"),
    [
        ([(1, 9)], "decode", 1, 0, 10),
        ([(1, 9), (1, 0)], "decode", 2, 0, 11),
        ([(5, 0), (3, 8)], "prefill", 8, 8, 16),
        ([(1, 20), (7, 32)], "mixed", 8, 7, 60),
    ],
)
def test_a_shape_says_what_a_step_computes(chunks, kind, rows, prefill_rows, context):
    found = shape(*chunks)
    assert (found.kind, found.rows, found.prefill_rows, found.context) == (kind, rows, prefill_rows, context)
    assert found.sequences == len(chunks)


def test_verification_is_a_kind_of_its_own():
    proposed = Proposal((3, 4, 5))
    verifying, decoding = Chunk(None, 1, 20, (), 1).propose(proposed), Chunk(None, 1, 9, (), 1)
    prefilling = Chunk(None, 6, 0, (), 1)

    def of(*chunks):
        return StepShape.of(StepPlan(chunks, ()))

    found = of(verifying, verifying, decoding)
    assert (found.kind, found.rows, found.sequences, found.context) == ("verify", 9, 3, 58)
    assert (found.prefills, found.verifies, found.verify_rows, found.decodes) == (0, 2, 8, 1)
    assert found.verify_pairs == 2 * (21 + 22 + 23 + 24)
    assert of(verifying, prefilling).kind == "mixed"
    assert of(decoding).kind == "decode"
    record = StepRecord(0.0, 1.0, 3.0, 4.0, of(verifying, prefilling))
    report = StepReport.of(record, Estimates(StepEstimate(1.0, 1.0)))
    assert (report.verify_rows, report.prefill_rows, report.decode_rows, report.rows) == (4, 6, 0, 10)


def test_an_engines_verifications_are_reported_as_such():
    core = fake_core(speculator=Speculator(Always(lambda chunk: [1] * chunk.room), length=FixedLength(3)))
    core.submit(Request((5, 6, 7), 12), 0)
    results(core)
    assert [record.shape.kind for record in core.steps.records][:4] == ["prefill", *["verify"] * 3]


def test_pairs_are_those_that_a_causal_mask_lets_through():
    assert shape((3, 0), (2, 10)).prefill_pairs == (1 + 2 + 3) + (11 + 12)


def test_the_longest_context_is_that_of_a_sequence_that_decodes():
    assert shape((1, 9), (1, 40), (5, 90)).decode_longest == 40
    assert shape((5, 90)).decode_longest == 0


def test_a_report_splits_the_time_and_holds_it_against_the_roofline():
    record = StepRecord(10.0, 10.1, 10.5, 10.6, shape((1, 9)))
    report = StepReport.of(record, Estimates(StepEstimate(2e9, 1e9, 0.3, "memory", 0.2)))
    assert (report.scheduling, report.running, report.sampling) == pytest.approx((0.1, 0.4, 0.1))
    assert report.seconds == pytest.approx(0.6)
    assert report.error == pytest.approx(-0.25)
    assert (report.bound, report.bound_share) == ("memory", pytest.approx(0.5))


def test_without_a_measurement_work_is_known_and_time_is_not():
    record = StepRecord(0.0, 0.1, 0.2, 0.3, shape((1, 9)))
    report = StepReport.of(record, Estimates(StepEstimate(2e9, 1e9)))
    assert (report.flops, report.bytes) == (2e9, 1e9)
    assert {report.predicted, report.error, report.bound, report.bound_share} == {None}


def test_an_engine_notes_every_step_that_it_computed():
    core = fake_core(token_budget=8)
    assert core.steps.last is None
    core.submit(Request((3,) * 10, 4), 0)
    core.submit(Request((5,) * 3, 2), 1)
    results(core)
    core.step()  # there is nothing to do, and nothing to note
    noted = [record.shape for record in core.steps.records]
    assert [(s.decodes, s.prefill_rows) for s in noted] == [(0, 8), (0, 5), (2, 0), (1, 0), (1, 0)]
    assert [s.context for s in noted] == [8, 13, 15, 12, 13]
    assert sum(s.rows for s in noted) == sum(c.rows for plan in core.runner.plans for c in plan.chunks)


def test_a_step_that_fails_is_not_noted(monkeypatch):
    core = fake_core()
    core.submit(Request((3,), 4), 0)
    monkeypatch.setattr(core.runner, "run", lambda plan: 1 / 0)
    core.step()
    assert core.steps.last is None


def test_the_log_forgets_the_oldest():
    log = StepLog(most=3)
    records = [StepRecord(i, i, i, i, shape((1, i))) for i in range(5)]
    for record in records:
        log.add(record)
    assert log.records == tuple(records[2:])
    assert log.last == records[4]


def test_the_log_can_be_read_while_it_is_written():
    log, done = StepLog(most=50), threading.Event()
    record = StepRecord(0, 0, 0, 0, shape((1, 0)))

    def write():
        for i in range(20_000):
            log.add(replace(record, started=i))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        begun = [found.started for found in log.records]
        assert begun == sorted(begun)
    writer.join()
    assert len(log.records) == 50
