"""What a client gets: outcomes, errors that tell causes apart, one outcome per id."""

import pytest

from broker.routing.bounds import WAITERS_MAX
from protocol import mdp
from protocol.codec import pack, unpack
from protocol.limits import DEADLINE_DEFAULT_S, DEADLINE_MS_MAX, WORKER_HEARTBEAT_INTERVAL_S
from protocol.messages import ReplyHeader, RequestHeader
from tests.broker.lane_world import World, small


@pytest.fixture
def world() -> World:
    made = World()
    made.router.expect(["health_monitor"], made.now)
    return made


class TestOutcomes:
    def test_a_request_goes_to_the_worker_and_its_answer_back(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask(b"c", argument=7)
        peer, _, body = world.dispatched[0]
        assert peer == b"w"
        assert unpack(body[1], 100) == {"x": 7}
        world.answer(result=8)
        reply = world.replies[0]
        assert (reply.peer, reply.service, reply.id) == (b"c", b"health_monitor", request_id)
        assert reply.result == {"result": 8}
        assert world.counts["delivered"] == 1
        assert "pending" not in world.counts

    def test_raw_frames_pass_untouched_both_ways(self, world: World) -> None:
        world.ready(b"w")
        header = RequestHeader(bytes(16), "put", int((world.now + 5) * 1000)).encode()
        world.say(b"c", *mdp.request(b"health_monitor", header, b"\x80", b"raw", b""))
        worker, address, body = world.dispatched[0]
        assert body == [header, b"\x80", b"raw", b""]
        world.say(worker, *mdp.final(address, b"h", b"", b"more"))
        assert world.replies[0].body == [b"h", b"", b"more"]

    def test_a_request_waits_for_an_expected_service_and_is_handed_over_when_it_comes(self, world: World) -> None:
        world.ask()
        assert not world.dispatched
        world.ready(b"w")
        world.answer()
        assert world.codes == [""]

    def test_parts_of_an_answer_pass_in_order_and_do_not_end_it(self, world: World) -> None:
        world.ready(b"w")
        world.ask(b"c")
        worker, address, _ = world.dispatched[0]
        for part in (b"1", b"2"):
            world.say(worker, mdp.WORKER, mdp.WORKER_PARTIAL, address, b"", part)
        world.answer()
        assert [part.body for part in world.partials] == [[b"1"], [b"2"]]
        assert world.codes == [""]


class TestErrors:
    def test_an_unknown_name_fails_at_once(self, world: World) -> None:
        world.ask(service="nobody")
        world.ask(service="updater")
        assert world.codes == ["service_unknown", "service_unknown"]
        assert world.counts == {"received": 2, "rejected": 2}

    def test_an_expected_service_that_does_not_come_is_missing_at_the_deadline(self, world: World) -> None:
        world.ask(within_s=2.0)
        world.pass_time(1.9)
        assert world.codes == []
        world.pass_time(0.2)
        assert world.codes == ["service_missing"]

    def test_a_service_with_a_full_window_is_busy_at_the_deadline(self, world: World) -> None:
        world.ready(b"w", window=1)
        world.ask(within_s=60)
        world.ask(within_s=1)
        world.pass_time(1.1)
        assert world.codes == ["busy"]
        assert len(world.dispatched) == 1

    def test_a_worker_that_does_not_answer_lets_the_deadline_pass(self, world: World) -> None:
        world.ready(b"w")
        world.ask(within_s=1)
        world.pass_time(1.1)
        assert world.codes == ["deadline_passed"]
        assert world.counts["expired"] == 1

    def test_a_late_answer_is_dropped(self, world: World) -> None:
        world.ready(b"w")
        world.ask(within_s=1)
        world.pass_time(1.1)
        world.answer()
        assert world.codes == ["deadline_passed"]
        assert world.counts["late_replies"] == 1

    def test_what_arrives_after_its_deadline_is_refused_and_never_handed_over(self, world: World) -> None:
        world.ready(b"w")
        world.ask(within_s=-0.001)
        assert world.codes == ["deadline_passed"]
        assert not world.dispatched

    def test_what_waited_beyond_its_deadline_is_not_handed_over_even_before_the_next_tick(self, world: World) -> None:
        world.ask(within_s=1)
        world.now += 30
        world.ready(b"w")
        assert not world.dispatched
        assert world.codes == ["busy"]

    def test_a_deadline_too_far_away_is_cut(self, world: World) -> None:
        world.ask(within_s=10 * DEADLINE_MS_MAX / 1000)
        world.pass_time(DEADLINE_MS_MAX / 1000 + 1, step_s=5.0)
        assert world.codes == ["service_missing"]

    @pytest.mark.parametrize(
        ("header", "code"),
        [
            (b"", "bad_request"),
            (b"\xc1", "bad_request"),
            (pack({"v": 1}), "bad_request"),
            (pack({"v": 2, "id": bytes(16), "op": "ping", "deadline_ms": 1 << 40}), "bad_version"),
            (pack({"v": 1, "id": b"short", "op": "ping", "deadline_ms": 1 << 40}), "bad_request"),
            (pack({"v": 1, "id": bytes(16), "op": "pi ng", "deadline_ms": 1 << 40}), "bad_request"),
            (pack({"v": 1, "id": bytes(16), "op": "ping", "deadline_ms": -1}), "bad_request"),
            (b"\x91" * 4000, "bad_request"),
            (bytes(5000), "too_large"),
        ],
    )
    def test_a_service_of_ours_refuses_what_has_no_proper_header(self, world: World, header: bytes, code: str) -> None:
        world.ready(b"w")
        world.say(b"c", *mdp.request(b"health_monitor", header, b"\x80"))
        assert world.codes == [code]
        assert not world.dispatched

    def test_a_message_out_of_bounds_is_answered(self, world: World) -> None:
        header = RequestHeader(b"i" * 16, "put", 1 << 40).encode()
        world.router.receive_oversized(b"c", [mdp.CLIENT, mdp.CLIENT_REQUEST, b"health_monitor", header])
        world.router.receive_oversized(b"c", [b"x"])
        world.collect()
        assert (world.replies[0].code, world.replies[0].id) == ("too_large", b"i" * 16)
        assert world.counts == {"received": 1, "rejected": 1, "malformed": 1}

    @pytest.mark.parametrize(
        "frames",
        [
            (b"",),
            (b"MDPC01", b"\x01", b"x", b"y"),
            (mdp.CLIENT,),
            (mdp.CLIENT, b"\x01"),
            (mdp.CLIENT, b"\x01", b"s"),
            (mdp.CLIENT, b"\x09", b"s", b"b"),
            (mdp.WORKER,),
        ],
    )
    def test_what_is_no_majordomo_is_dropped_and_counted(self, world: World, frames: tuple[bytes, ...]) -> None:
        world.say(b"c", *frames)
        assert world.counts == {"malformed": 1}
        assert not world.replies


class TestIds:
    def test_a_retry_by_the_same_peer_is_not_executed_again(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask(b"c")
        world.ask(b"c", request_id=request_id)
        world.answer()
        assert len(world.dispatched) == 1
        assert [reply.peer for reply in world.replies] == [b"c"]
        assert world.counts["repeated"] == 1

    def test_a_retry_from_a_new_address_gets_the_one_outcome_too(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask(b"old")
        world.ask(b"new", request_id=request_id, within_s=4.0)
        world.answer()
        assert len(world.dispatched) == 1
        assert sorted(reply.peer for reply in world.replies) == [b"new", b"old"]

    def test_a_retry_after_the_outcome_gets_the_same_outcome(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask(b"c")
        world.answer(result="first")
        world.ask(b"c", request_id=request_id)
        assert [reply.result for reply in world.replies] == [{"result": "first"}] * 2
        assert len(world.dispatched) == 1
        assert world.counts["replayed"] == 1

    def test_an_error_is_an_outcome_as_well(self, world: World) -> None:
        request_id = world.ask(within_s=1)
        world.pass_time(1.1)
        world.ready(b"w")
        world.ask(request_id=request_id)
        assert world.codes == ["service_missing", "service_missing"]
        assert not world.dispatched

    @pytest.mark.parametrize("finished", [True, False])
    def test_an_id_with_other_content_is_a_conflict(self, world: World, finished: bool) -> None:
        world.ready(b"w")
        request_id = world.ask(argument=1)
        if finished:
            world.answer()
        world.ask(request_id=request_id, argument=2)
        world.ask(request_id=request_id, op="status", argument=1)
        assert world.codes[-2:] == ["id_conflict", "id_conflict"]
        assert len(world.dispatched) == 1

    def test_those_who_may_wait_for_one_request_are_bounded(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask(b"c")
        for number in range(20):
            world.ask(b"c%d" % number, request_id=request_id)
        assert world.codes.count("busy") == 20 - (WAITERS_MAX - 1)
        world.answer()
        assert world.codes.count("") == WAITERS_MAX

    def test_outcomes_are_forgotten_by_age(self, world: World) -> None:
        world.ready(b"w")
        request_id = world.ask()
        world.answer()
        for _ in range(62):
            world.pass_time(1.0)
            world.say(b"w", *mdp.HEARTBEAT)
        world.ask(request_id=request_id)
        assert len(world.dispatched) == 2

    def test_a_large_outcome_is_remembered_without_its_body(self) -> None:
        world = World(small(outcomes_bytes_max=10_000))
        world.ready(b"w")
        request_id = world.ask()
        world.answer(result="x" * 5_000)
        world.ask(request_id=request_id)
        assert world.codes == ["", "failed"]
        assert len(world.dispatched) == 1


class TestBounds:
    def test_open_requests_are_bounded_by_number(self) -> None:
        world = World(small(open_requests_max=5))
        world.router.expect(["health_monitor"], world.now)
        for number in range(8):
            world.ask(b"c%d" % number)
        assert world.codes == ["busy"] * 3

    def test_open_requests_are_bounded_by_bytes(self) -> None:
        world = World(small(open_bytes_max=10_000))
        world.router.expect(["health_monitor"], world.now)
        for number in range(4):
            world.ask(b"c%d" % number, argument=bytes(3_000))
        assert world.codes == ["busy"]

    def test_one_peer_cannot_fill_a_queue(self) -> None:
        world = World(small(waiting_per_peer_max=3))
        world.router.expect(["health_monitor"], world.now)
        for _ in range(5):
            world.ask(b"greedy")
        world.ask(b"modest")
        assert world.codes == ["busy", "busy"]
        assert {reply.peer for reply in world.replies} == {b"greedy"}
        world.ready(b"w")
        assert len(world.dispatched) == 4
        world.ask(b"greedy")
        assert len(world.dispatched) == 5

    def test_a_queue_of_expired_requests_is_emptied(self, world: World) -> None:
        for number in range(100):
            world.ask(b"c%d" % (number % 7), within_s=0.5)
        world.pass_time(0.6)
        service = world.router.services()[0]
        assert service["waiting"] == 0
        assert world.codes == ["service_missing"] * 100


class TestManagement:
    def test_mmi_service_tells_who_is_there(self, world: World) -> None:
        world.ready_foreign(b"w", "echo")
        for name in (b"echo", b"nobody", b"health_monitor", b"broker"):
            world.say(b"c", *mdp.request(mdp.MMI_SERVICE, name))
        assert [reply.body for reply in world.replies] == [[b"200"], [b"404"], [b"404"], [b"200"]]
        assert world.replies[0].service == mdp.MMI_SERVICE

    def test_an_unknown_management_request_is_not_implemented(self, world: World) -> None:
        world.say(b"c", *mdp.request(b"mmi.frobnicate", b""))
        assert world.replies[0].body == [b"501"]

    @pytest.mark.parametrize("what", ["status", "describe", "services", "dead_letters", "ping"])
    def test_what_the_service_broker_answers_mmi_answers_to_plain_clients(self, world: World, what: str) -> None:
        world.ask(service="broker", op=what)
        world.say(b"c", *mdp.request(b"mmi." + what.encode(), b""))
        own, mmi = world.replies
        assert mmi.body[0] == b"200"
        assert unpack(mmi.body[1], 1 << 20).keys() == own.result.keys()

    def test_the_broker_describes_every_operation_it_has(self, world: World) -> None:
        world.ask(service="broker", op="describe")
        for operation in world.replies[0].result["operations"]:
            world.ask(service="broker", op=operation["name"])
        assert world.codes == [""] * 6

    def test_the_broker_refuses_what_it_does_not_have(self, world: World) -> None:
        world.ask(service="broker", op="fly")
        world.ask(service="broker", within_s=-1)
        world.say(b"c", *mdp.request(b"broker", b"no header"))
        assert world.codes == ["unknown_operation", "deadline_passed", "bad_request"]

    def test_status_balances_at_the_moment_it_is_taken(self, world: World) -> None:
        world.ready(b"w")
        world.ask()
        world.ask(service="broker", op="status")
        lane = world.replies[0].result["lanes"]["control"]
        counters = lane["counters"]
        fates = ("delivered", "expired", "rejected", "repeated", "dead_lettered", "pending")
        assert counters["received"] == sum(counters[name] for name in fates)
        assert lane["requests_in_flight"] == 1


class TestForeign:
    def test_an_opaque_request_has_a_default_deadline_and_no_id(self, world: World) -> None:
        world.ready_foreign(b"w", "echo")
        for _ in range(2):
            world.say(b"c", *mdp.request(b"echo", b"hello", b"again"))
        assert [body for _, _, body in world.dispatched] == [[b"hello", b"again"]]
        worker, address, _ = world.dispatched[0]
        world.say(worker, *mdp.final(address, b"hi"))
        assert world.replies[0].body == [b"hi"]
        assert len(world.dispatched) == 2
        world.pass_time(DEADLINE_DEFAULT_S + 0.1)
        assert world.replies[1].code == "deadline_passed"

    def test_a_header_of_ours_counts_towards_foreign_workers_too(self, world: World) -> None:
        world.ready_foreign(b"w", "echo")
        request_id = world.ask(service="echo", within_s=1)
        world.ask(b"other", service="echo", request_id=request_id, within_s=1)
        assert len(world.dispatched) == 1
        world.pass_time(1.1)
        assert world.codes == ["deadline_passed"] * 2

    def test_a_service_that_was_there_is_waited_for_a_while(self, world: World) -> None:
        world.ready_foreign(b"w", "echo")
        world.say(b"w", mdp.WORKER, mdp.WORKER_DISCONNECT)
        world.ask(service="echo", within_s=100)
        assert world.codes == []
        world.pass_time(30 + WORKER_HEARTBEAT_INTERVAL_S)  # looked at with every heartbeat
        assert world.codes == ["service_unknown"]
        world.ask(service="echo")
        assert world.codes == ["service_unknown"] * 2

    def test_after_a_restart_of_the_broker_unknown_names_get_a_moment(self) -> None:
        world = World(settle_s=2.0)
        world.ask(service="echo", within_s=10)
        world.ask(service="never", within_s=10)
        world.ask(service="updater", within_s=10)
        assert world.codes == ["service_unknown"]
        world.ready_foreign(b"w", "echo")
        assert len(world.dispatched) == 1
        world.pass_time(3.1)
        assert world.codes == ["service_unknown", "service_unknown"]
        world.ask(service="never")
        assert world.codes[-1] == "service_unknown"


class TestUndelivered:
    def test_an_answer_to_somebody_who_is_gone_is_a_dead_letter(self, world: World) -> None:
        world.ready(b"w")
        world.ask(b"c")
        worker, address, _ = world.dispatched[0]
        frames = mdp.final(address, ReplyHeader(b"i" * 16).encode(), b"r")
        world.router.receive(worker, list(frames), 20, world.now)
        (outgoing,) = world.router.outbox
        world.router.outbox.clear()
        world.router.undelivered(outgoing, world.now, gone=True)
        assert world.counts["dead_lettered"] == 1
        assert "delivered" not in world.counts
        (letter,) = world.router.dead_letters.as_list()
        assert (letter["reason"], letter["id"]) == ("the client is gone", (b"i" * 16).hex())
        assert world.router.counters.imbalance() == 0

    def test_an_error_that_cannot_be_sent_keeps_its_fate(self, world: World) -> None:
        world.router.receive(b"c", mdp.request(b"nobody", b""), 20, world.now)
        (outgoing,) = world.router.outbox
        world.router.undelivered(outgoing, world.now, gone=False)
        assert world.counts == {"received": 1, "rejected": 1}


def test_when_the_system_stops_everybody_is_told() -> None:
    world = World()
    world.router.expect(["health_monitor"], world.now)
    world.ask(service="health_monitor")
    world.ready(b"w", "event_logger")
    world.ask(service="event_logger")
    world.router.drain(world.now)
    world.collect()
    assert world.codes == ["draining", "draining"]
    assert (b"w", mdp.WORKER_DISCONNECT) in world.commands
    world.ready(b"late", "health_monitor")
    world.ask(service="health_monitor")
    assert world.codes[-1] == "draining"
    assert world.commands[-1] == (b"late", mdp.WORKER_DISCONNECT)
