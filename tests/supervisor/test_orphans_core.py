"""Whose an orphan is: the table of `supervisor.orphans_core`, row by row."""

from supervisor.orphans_core import LINGER_S, Known, Orphan, Orphans, described

WEB, JOB = ("web", 3), ("job", 1)


def orphans(*lives: tuple[str, int]) -> Orphans:
    core = Orphans()
    for place, life in enumerate(lives):
        core.began(life, (100 + place, 1000 + 10 * place), f"id-{life[0]}", forked=True)
    return core


def test_who_carries_a_lifes_id_ends_with_it() -> None:
    core = orphans(WEB, JOB)
    known = core.seen(Orphan((500, 2000), invocation="id-web"))
    assert known is not None
    assert not known.evades
    core.ended(JOB, 3000, 1.0)
    assert core.doomed() == []
    core.ended(WEB, 3000, 1.0)
    assert core.doomed() == [(500, 2000)]


def test_who_is_in_the_session_of_its_main_process_does_too_but_not_in_that_of_an_earlier_owner_of_the_number() -> None:
    core = orphans(WEB, JOB)
    mine, older = core.seen(Orphan((500, 2000), session=101)), core.seen(Orphan((501, 900), session=101))
    assert mine is not None
    assert mine.lives == {JOB}
    assert older is not None
    assert older.lives == frozenset()


def test_our_own_helpers_are_left_alone() -> None:
    core = orphans(WEB)
    assert core.seen(Orphan((500, 2000), is_ours=True)) is None
    core.ended(WEB, 3000, 1.0)
    assert core.doomed() == []
    assert (500, 2000) in core.keys


def test_the_only_life_that_could_have_started_it_did() -> None:
    core = orphans(WEB, JOB)
    known = core.seen(Orphan((500, 1005)))  # job began later
    assert known is not None
    assert (known.lives, known.evades) == ({WEB}, False)


def test_of_several_that_could_have_the_last_one_ends_it() -> None:
    core = orphans(WEB, JOB)
    known = core.seen(Orphan((500, 2000), command="sleep 9"))
    assert known is not None
    assert (known.lives, known.evades) == ({WEB, JOB}, True)
    assert "process 500 (sleep 9)" in described(known)
    assert "job or web" in described(known)
    core.ended(WEB, 3000, 1.0)
    assert core.doomed() == []
    core.missed({(500, 2000)}, 1.0 + 2 * LINGER_S)
    core.began(("web", 4), (100, 9000), "other", forked=True)  # whose it is not
    core.ended(JOB, 9500, 99.0)
    assert core.doomed() == [(500, 2000)]


def test_what_an_evading_one_may_have_started_evades_too() -> None:
    core = orphans(WEB, JOB)
    core.seen(Orphan((500, 2000)))
    core.ended(WEB, 3000, 1.0)
    known = core.seen(Orphan((501, 4000)))  # web cannot have started it, but what it may have left can
    assert known is not None
    assert known.lives == {WEB, JOB}


def test_nobody_is_killed_whom_no_program_can_have_started() -> None:
    core = orphans(WEB)
    known = core.seen(Orphan((500, 10)))
    core.began(JOB, (700, 20), "", forked=False)  # adopted: its orphans go elsewhere
    assert known is not None
    assert (known.lives, known.evades) == (frozenset(), True)
    core.ended(WEB, 3000, 1.0)
    assert core.doomed() == []


def test_what_was_looked_at_before_tells_whose_it_is() -> None:
    core = orphans(WEB, JOB)
    known = core.seen(Orphan((500, 2000)), {(500, 2000): JOB})
    assert known is not None
    assert (known.lives, known.evades) == ({JOB}, False)


def test_a_reused_number_is_somebody_else() -> None:
    core = orphans(WEB, JOB)
    core.seen(Orphan((500, 2000), invocation="id-web"))
    assert core.missed({(500, 2500)}, 1.0)
    core.ended(WEB, 3000, 1.0)
    assert core.doomed() == []


def test_a_successor_ends_whom_a_life_has_left_that_ended_meanwhile() -> None:
    core = Orphans()
    both = Known((500, 2000), "", frozenset({WEB, JOB}), evades=True)
    core.began(JOB, (101, 1010), "id-job", forked=False)
    core.inherit([both, Known((501, 2000), "", frozenset({WEB}), evades=False)], [JOB])
    assert core.doomed() == [(501, 2000)]
    core.ended(JOB, 3000, 1.0)
    assert core.doomed() == [(500, 2000), (501, 2000)]


def test_a_life_that_ended_long_ago_is_forgotten() -> None:
    core = orphans(WEB, JOB)
    core.ended(WEB, 3000, 1.0)
    core.missed((), 1.0 + 2 * LINGER_S)
    known = core.seen(Orphan((500, 2000)))
    assert known is not None
    assert known.lives == {JOB}
