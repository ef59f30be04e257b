"""A measured step stands beside the predicted step that it is, and beside no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.errors import InputError
from ridgeline.report.joined import join


def test_every_operator_is_there_once_with_all_its_kernels(decoder):
    for joined in join(decoder, None):
        kernels = joined.phase.kernels
        assert len(joined.operators) == len({k.op_index for k in kernels})
        assert sum(o.predicted for o in joined.operators) == pytest.approx(joined.phase.seconds)
        assert sum(o.flops for o in joined.operators) == pytest.approx(joined.phase.flops.total)
        assert sum(o.bytes for o in joined.operators) == pytest.approx(joined.phase.bytes)
        assert all(o.measured is None for o in joined.operators)


def test_measured_times_go_to_their_operators(decoder, checked):
    for joined in join(decoder, checked(decoder, slower=2.0)):
        assert joined.check is not None
        for o in joined.operators:
            assert o.measured == pytest.approx(2 * o.predicted)


def test_a_decode_step_at_another_context_is_another_step(decoder, checked):
    found = checked(decoder)
    prefill, decode = found.phases
    elsewhere = replace(found, phases=(prefill, replace(decode, context=2 * decode.context)))
    assert [joined.check is not None for joined in join(decoder, elsewhere)] == [True, False]


def test_the_nearest_context_is_taken(decoder, checked):
    found = checked(decoder)
    prefill, decode = found.phases
    contexts = [decode.context - 4, decode.context + 1, decode.context - 2]
    several = replace(found, phases=(prefill, *(replace(decode, context=c) for c in contexts)))
    assert join(decoder, several)[1].check.context == decode.context + 1


def test_a_check_of_one_request_is_not_put_beside_a_batch(decoder, cpu, checked):
    batch = explain("smollm2-135m", cpu, prompt=512, output=128, batch=4)
    assert all(joined.check is None for joined in join(batch, checked(decoder)))


@pytest.mark.parametrize("field", ["model", "device"])
def test_a_check_of_something_else_is_refused(decoder, field, checked):
    other = replace(checked(decoder), **{field: "another"})
    with pytest.raises(InputError, match=r"the check is of .*another"):
        join(decoder, other)
