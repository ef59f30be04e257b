import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.timing import LEAST_ROUNDS, KernelProbe, Probe, Schedule, Timing, Timings, time_probes

SECONDS = st.floats(1e-7, 1.0)


class Machine:
    """A clock that only calls move, each by the next of ``durations`` and then by the last."""

    def __init__(self, durations):
        self.now, self.calls, self.durations = 0.0, 0, durations

    def clock(self):
        return self.now

    def call(self, *arguments):
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def timed(durations, schedule, work=1.0):
    """The seconds and the spread of one probe, and the machine it ran on."""
    machine = Machine(durations)
    found = time_probes([Probe("figure", machine.call, work)], schedule, clock=machine.clock)
    return found.seconds("figure"), found.spreads()["figure"], machine


def one_call_a_round(rounds):
    return Schedule(rounds, settled_rounds=rounds + 1, seconds=1e9, calls=1)


def test_a_kernel_probe_counts_the_seconds_that_its_call_returns():
    machine = Machine([5.0])
    probe = KernelProbe("figure", lambda: machine.call() or 0.25, work=2.0)
    found = time_probes([probe], one_call_a_round(3), clock=machine.clock)
    assert found.seconds("figure") == 0.125


def test_of_few_rounds_the_best_counts_and_the_worst_is_the_spread():
    warm_up = 9.0
    seconds, spread, _ = timed([warm_up, 3.0, 2.0, 5.0], one_call_a_round(3))
    assert seconds == 2.0
    assert spread == pytest.approx(1.5)


def test_a_hiccup_within_a_round_does_not_count():
    seconds, spread, _ = timed(
        [1.0, *[1.0, 1.0, 99.0] * 2], Schedule(2, seconds=1e9, calls=3, probe_seconds=1e9)
    )
    assert (seconds, spread) == (1.0, 0.0)


def test_seconds_are_those_of_a_unit_of_work():
    machine = Machine([2.0])
    probe = Probe("figure", machine.call, work=8.0)
    found = time_probes([probe], one_call_a_round(2), clock=machine.clock)
    assert found.seconds("figure") == pytest.approx(0.25)
    assert found.rate("figure") == pytest.approx(4.0)


def test_what_prepares_a_call_is_not_timed_and_gives_its_arguments():
    machine, seen = Machine([1.0]), []

    def prepare():
        machine.now += 100.0
        return ("this", "that")

    def call(*arguments):
        seen.append(arguments)
        machine.call()

    found = time_probes([Probe("figure", call, prepare=prepare)], one_call_a_round(2), clock=machine.clock)
    assert found.seconds("figure") == pytest.approx(1.0)
    assert set(seen) == {("this", "that")}


def test_rounds_that_agree_are_enough():
    schedule = Schedule(rounds=9, settled_rounds=3, tolerance=0.1, seconds=1e9, calls=1)
    warm_up = 1
    assert timed([1.0, 1.0, 1.05, 1.02, 1.0], schedule)[2].calls == warm_up + 3
    assert timed([1.0, 1.0, 7.0, 1.05, 1.02, 1.0], schedule)[2].calls == warm_up + 4
    assert timed([1.0, *(2.0**n for n in range(20))], schedule)[2].calls == warm_up + 9


def test_when_time_is_over_only_the_least_rounds_are_run():
    schedule = Schedule(rounds=9, settled_rounds=9, seconds=1.0, calls=1)
    assert timed([10.0], schedule)[2].calls == 1 + LEAST_ROUNDS


def test_a_round_ends_with_its_calls_or_its_time():
    schedule = Schedule(2, seconds=1e9, calls=4, probe_seconds=2.5)
    assert timed([0.1], schedule)[2].calls == 1 + 2 * 4
    assert timed([1.0], schedule)[2].calls == 1 + 2 * 3
    assert timed([9.0], schedule)[2].calls == 1 + 2 * 1


def test_of_several_probes_of_a_figure_the_fastest_counts():
    found = Timings([("a", Timing(2.0, 0.5)), ("a", Timing(1.0, 0.1)), ("a", Timing(3.0, 0.0))])
    assert found.seconds("a") == 1.0
    assert found.spreads() == {"a": 0.1}
    assert "a" in found
    assert "b" not in found


def test_a_table_has_the_median_spread_of_its_cells():
    cells = [(f"table[{n}, 8]", Timing(1.0, spread)) for n, spread in enumerate((0.1, 0.3, 7.0))]
    assert Timings([*cells, ("rate", Timing(1.0, 0.2))]).spreads() == {"table": 0.3, "rate": 0.2}


@given(st.lists(SECONDS, min_size=1))
def test_no_round_is_beyond_the_spread_and_a_quarter_are_no_slower(rounds):
    timing = Timing.of(rounds)
    assert timing.seconds in rounds
    assert max(rounds) == pytest.approx(min(rounds) * (1 + timing.spread))
    assert 4 * sum(seconds <= timing.seconds for seconds in rounds) >= len(rounds)


def test_progress_grows_from_none_to_all():
    machine, told = Machine([1.0]), []
    probes = [Probe(f"table[{n}]", machine.call) for n in range(3)]
    schedule = Schedule(rounds=4, seconds=5.0, calls=1)
    time_probes(probes, schedule, lambda what, share: told.append((what, share)), machine.clock)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert [what for what, _ in told[:4]] == ["warming up"] * 3 + ["table"]


def test_what_waits_for_memory_is_told_at_its_usual_rate():
    """Memory at half its rate in one round in three: the time is the same, and so is the spread none."""
    rates = iter([4.0, 2.0, 4.0, 4.0, 4.0, 4.0])
    machine = Machine([10.0, 5.0, 10.0, 5.0])
    now = {"rate": 4.0}

    def read():
        now["rate"] = next(rates)
        machine.now += 1.0  # so that the next reading is due
        return now["rate"]

    def call():
        machine.call()
        return 20.0 / now["rate"]

    probe = KernelProbe("fresh", call, twin="")
    found = time_probes([probe], one_call_a_round(3), clock=machine.clock, memory=read)
    assert found.memory == 4.0
    assert found.seconds("fresh") <= 5.0


def test_what_does_not_wait_for_memory_is_told_as_it_was():
    rates = iter([8.0, 1.0, 8.0, 8.0])
    machine = Machine([3.0])
    probes = [Probe("warm", machine.call)]
    found = time_probes(probes, one_call_a_round(2), clock=machine.clock, memory=lambda: next(rates))
    assert (found.seconds("warm"), found.spreads()["warm"]) == (3.0, 0.0)


def test_without_readings_nothing_moves():
    machine = Machine([3.0])
    found = time_probes([Probe("fresh", machine.call, twin="")], one_call_a_round(2), clock=machine.clock)
    assert (found.seconds("fresh"), found.memory) == (3.0, 0.0)
