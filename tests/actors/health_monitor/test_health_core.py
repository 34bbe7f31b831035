"""When a check is due, what a result means, and which changes are told: without a clock."""

import random

import pytest

from actors.health_monitor.core import (
    BADNESS,
    Change,
    CheckSpec,
    Grade,
    HealthCore,
    Observation,
    Status,
    above,
    below,
    worst,
)

OK, UNKNOWN, WARNING, CRITICAL = Status.OK, Status.UNKNOWN, Status.WARNING, Status.CRITICAL
FREE = Grade(below(1000, 10), below(500, 10))
DISK = CheckSpec("disk", interval_s=10, timeout_s=5, grades={"free": FREE})


def free(value: float) -> Observation:
    return Observation(f"{value} free", value, "bytes", measures={"free": value})


def observed(core: HealthCore, value: float, now: float) -> list[Status]:
    return [change.finding.status for change in core.finished("disk", free(value), now)]


def status_of(core: HealthCore, now: float, name: str = "disk") -> Status:
    return next(finding.status for finding in core.findings(now) if finding.name == name)


@pytest.mark.parametrize(
    ("value", "before", "after"),
    [
        (1001, OK, OK),
        (999, OK, WARNING),
        (499, OK, CRITICAL),
        (1050, WARNING, WARNING),
        (1101, WARNING, OK),
        (520, CRITICAL, CRITICAL),
        (560, CRITICAL, WARNING),
        (1050, CRITICAL, WARNING),
        (1101, CRITICAL, OK),
    ],
)
def test_a_low_figure_is_graded_with_hysteresis(value: float, before: Status, after: Status) -> None:
    assert FREE.of(value, before) is after


@pytest.mark.parametrize(
    ("value", "before", "after"), [(20, OK, OK), (21, OK, WARNING), (19, WARNING, WARNING), (18, WARNING, OK)]
)
def test_a_high_figure_is_graded_with_hysteresis(value: float, before: Status, after: Status) -> None:
    assert Grade(warning=above(20, 10)).of(value, before) is after


@pytest.mark.parametrize("value", [0.0, 50.0, 100.0])
def test_a_bound_at_the_end_of_its_range_is_never_crossed(value: float) -> None:
    assert Grade(warning=above(100, 0), critical=below(0, 0)).of(value, OK) is OK


def test_the_worst_speaks_for_all_and_bad_news_before_no_news() -> None:
    assert worst([OK, UNKNOWN, WARNING, CRITICAL]) is CRITICAL
    assert worst([OK, UNKNOWN, WARNING]) is WARNING
    assert worst([OK, UNKNOWN]) is UNKNOWN
    assert worst([OK]) is OK
    assert worst([]) is UNKNOWN


def test_checks_are_due_at_once_then_by_their_interval_and_one_run_at_a_time() -> None:
    core = HealthCore([DISK], 100.0)
    assert core.due(100.0) == ["disk"]
    assert core.due(120.0) == [], "it runs"
    core.finished("disk", free(5000), 121.0)
    assert core.due(121.0) == ["disk"], "late, so at once"
    core.finished("disk", free(5000), 121.1)
    assert core.due(129.9) == []
    assert core.due(130.0) == ["disk"], "at a full multiple, as all else"


def test_a_run_that_hangs_is_a_finding_until_it_comes_back() -> None:
    core = HealthCore([DISK, CheckSpec("memory", 5, 5)], 0.0)
    core.due(0.0)
    core.finished("memory", Observation("plenty"), 0.1)
    assert core.tick(1.0) == core.tick(2.0) == core.tick(3.0) == core.tick(4.0) == core.tick(5.0) == []
    (change,) = core.tick(6.0)
    assert (change.before, change.finding.status) == (None, CRITICAL)
    assert core.tick(7.0) == [], "told once"
    assert "has not come back for 7 s" in core.report(7.0)["checks"][0]["message"]
    assert core.due(7.0) == ["memory"], "it holds up no other"
    assert observed(core, 5000, 8.0) == [OK]


def test_time_that_this_process_slept_is_not_held_against_a_check() -> None:
    core = HealthCore([DISK], 0.0)
    core.due(0.0)
    core.tick(1.0)
    assert core.tick(3600.0) == []
    assert core.tick(3601.0) == core.tick(3602.5) == []
    assert len(core.tick(3604.5)) == 1, "it had its timeout of running time"


def test_a_first_result_counts_at_once_and_later_ones_after_their_delays() -> None:
    core = HealthCore([CheckSpec("disk", 10, 5, {"free": FREE}, raise_after_s=10, clear_after_s=30)], 0.0)
    assert observed(core, 400, 0.0) == [CRITICAL]
    assert observed(core, 2000, 10.0) == []
    assert "(better for 20 s)" in core.report(30.0)["checks"][0]["message"]
    assert observed(core, 800, 39.0) == []
    assert observed(core, 800, 40.0) == [WARNING]
    assert observed(core, 400, 50.0) == []
    assert observed(core, 800, 55.0) == [], "back before the delay was over"
    assert observed(core, 400, 60.0) == []
    assert observed(core, 400, 70.0) == [CRITICAL]


def test_a_threshold_crossed_a_thousand_times_tells_no_more_than_the_delays_allow() -> None:
    core = HealthCore([CheckSpec("disk", 1, 5, {"free": FREE}, raise_after_s=0, clear_after_s=30)], 0.0)
    told = 0
    for second in range(2000):
        told += len(observed(core, 990 if second % 2 else 1200, float(second)))
    assert told == 2, "ok at first, a warning once: it is never better for long enough"


def test_within_the_hysteresis_nothing_is_told() -> None:
    core = HealthCore([DISK], 0.0)
    observed(core, 990, 0.0)
    assert [observed(core, 1001 + second % 90, float(second)) for second in range(1, 1000)] == [[]] * 999


def test_what_is_pushed_is_never_due_and_can_be_forgotten() -> None:
    core = HealthCore([], 0.0)
    spec = CheckSpec("broker", 1, 5)
    (change,) = core.pushed(spec, Observation("running", 0.2, "s"), 1.0)
    assert change.before is None
    assert core.pushed(spec, Observation("running", 0.3, "s"), 2.0) == []
    (change,) = core.pushed(spec, Observation("quarantined", status=CRITICAL), 3.0)
    assert (change.before, change.finding.status) == (OK, CRITICAL)
    assert core.due(1e9) == []
    core.forget("broker")
    assert core.report(4.0) == {"status": "unknown", "checks": [], "degraded": []}


def test_the_report() -> None:
    core = HealthCore([DISK, CheckSpec("memory", 5, 5)], 0.0)
    core.due(0.0)
    observed(core, 990, 1.0)
    assert core.report(3.5) == {
        "status": "warning",
        "checks": [
            {"name": "disk", "status": "warning", "message": "990 free", "value": 990, "unit": "bytes", "age_s": 2.5},
            {
                "name": "memory",
                "status": "unknown",
                "message": "not checked yet",
                "value": None,
                "unit": "",
                "age_s": None,
            },
        ],
        "degraded": ["disk", "memory"],
    }


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_the_changes_lead_to_the_state_and_no_run_overlaps(seed: int) -> None:
    draw = random.Random(seed)
    specs = [
        CheckSpec(
            name, draw.uniform(1, 10), draw.uniform(1, 5), {"free": FREE}, draw.choice((0, 5)), draw.choice((0, 30))
        )
        for name in "abc"
    ]
    core = HealthCore(specs, 0.0)
    told: dict[str, Status | None] = dict.fromkeys("abc")
    running: set[str] = set()
    now = 0.0

    def take(changes: list[Change]) -> None:
        for change in changes:
            assert change.before is told[change.finding.name] is not change.finding.status, f"seed {seed}"
            told[change.finding.name] = change.finding.status

    for _ in range(600):
        now += draw.choice((0.1, 0.5, 1.0, 20.0))
        due = core.due(now)
        assert not running & set(due), f"seed {seed}"
        running |= set(due)
        for name in [name for name in sorted(running) if draw.random() < 0.6]:
            running.discard(name)
            take(core.finished(name, free(draw.choice((300, 700, 1050, 5000))), now))
        take(core.tick(now))
        for finding in core.findings(now):
            assert finding.status is (told[finding.name] or UNKNOWN), f"seed {seed}"
        assert core.report(now)["status"] == max(
            (str(f.status) for f in core.findings(now)), key=lambda s: BADNESS[Status(s)]
        )
