"""Who may serve what, who gets the next request, and what becomes of what a lost worker had."""

import pytest

from broker.routing.bounds import SERVICES_MAX, WORKERS_MAX
from protocol import mdp
from protocol.codec import pack
from protocol.limits import WINDOW_MAX, WORKER_HEARTBEAT_INTERVAL_S, WORKER_HEARTBEAT_LIVENESS
from protocol.messages import WorkerHello
from tests.broker.lane_world import TOKEN, World, request_id_of

SILENCE_S = WORKER_HEARTBEAT_INTERVAL_S * WORKER_HEARTBEAT_LIVENESS
DISCONNECTED = mdp.WORKER_DISCONNECT
GREETED = mdp.WORKER_HEARTBEAT


@pytest.fixture
def world() -> World:
    made = World()
    made.router.expect(["health_monitor"], made.now)
    return made


def workers_of(world: World, service: str = "health_monitor") -> int:
    return next((entry["workers"] for entry in world.router.services() if entry["name"] == service), 0)


class TestRegistration:
    def test_a_worker_of_ours_is_greeted(self, world: World) -> None:
        world.ready(b"w", incarnation=3, window=7)
        assert world.commands == [(b"w", GREETED)]
        service = world.router.services()[0]
        assert (service["workers"], service["incarnation"], service["window"]) == (1, 3, 7)

    @pytest.mark.parametrize("name", ["health_monitor", "updater", "launcher", "watchdog", "backup"])
    @pytest.mark.parametrize(
        "hello", [None, WorkerHello(b"x" * 32, 9, 9).encode(), WorkerHello(b"", 9, 9).encode(), b"\xc1", b""]
    )
    def test_a_name_of_ours_needs_the_token(self, world: World, name: str, hello: bytes | None) -> None:
        world.say(b"thief", mdp.WORKER, mdp.WORKER_READY, name.encode(), *([] if hello is None else [hello]))
        assert world.commands == [(b"thief", DISCONNECTED)]
        assert workers_of(world, name) == 0
        assert world.counts == {"workers_refused": 1}

    @pytest.mark.parametrize("name", [b"broker", b"mmi.service", b"", b"\xff\xfe", b"a\nb", b"x" * 129])
    def test_some_names_nobody_may_serve(self, world: World, name: bytes) -> None:
        world.say(b"w", *mdp.ready(name, WorkerHello(TOKEN, 1, 1).encode()))
        assert world.commands == [(b"w", DISCONNECTED)]

    @pytest.mark.parametrize("window", [0, -1, WINDOW_MAX + 1, "many", None])
    def test_a_hello_out_of_bounds_is_refused(self, world: World, window: object) -> None:
        hello = pack({"token": TOKEN, "incarnation": 1, "window": window})
        world.say(b"w", *mdp.ready(b"health_monitor", hello))
        assert world.commands == [(b"w", DISCONNECTED)]

    def test_a_second_ready_disconnects(self, world: World) -> None:
        world.ready(b"w")
        world.ready(b"w")
        assert world.commands[-1] == (b"w", DISCONNECTED)
        assert workers_of(world) == 0

    def test_what_a_stranger_sends_as_a_worker_is_answered_with_disconnect(self, world: World) -> None:
        for command in (mdp.WORKER_FINAL, mdp.WORKER_PARTIAL, mdp.WORKER_HEARTBEAT, mdp.WORKER_PUBLISH, b"\x63"):
            world.say(b"w", mdp.WORKER, command, b"1", b"", b"x")
        assert world.commands == [(b"w", DISCONNECTED)] * 5

    def test_a_stranger_that_says_goodbye_gets_no_answer(self, world: World) -> None:
        world.say(b"w", *mdp.DISCONNECT)
        assert world.commands == []

    def test_nonsense_from_a_worker_takes_it_off(self, world: World) -> None:
        world.ready(b"w")
        world.say(b"w", mdp.WORKER, b"\x63")
        assert world.commands[-1] == (b"w", DISCONNECTED)
        assert world.counts["malformed"] == 1

    def test_foreign_workers_and_services_are_bounded_and_ours_come_in_all_the_same(self, world: World) -> None:
        for number in range(SERVICES_MAX + 10):
            world.ready_foreign(b"s%d" % number, f"service-{number}")
        for number in range(WORKERS_MAX + 10):
            world.ready_foreign(b"w%d" % number, "service-1")
        status = world.router.status()
        assert status["workers"] == WORKERS_MAX
        assert len(world.router.services()) == SERVICES_MAX
        world.ready(b"ours")
        assert workers_of(world) == 1

    def test_whoever_serves_a_name_that_turns_out_to_be_ours_has_to_go(self, world: World) -> None:
        world.ready_foreign(b"w", "greeter")
        world.router.expect(["greeter"], world.now)
        world.collect()
        assert world.commands[-1] == (b"w", DISCONNECTED)
        world.ready_foreign(b"w", "greeter")
        assert workers_of(world, "greeter") == 0

    def test_a_worker_with_our_token_has_its_name_to_itself(self, world: World) -> None:
        world.ready_foreign(b"foreign", "greeter")
        world.ready(b"ours", "greeter")
        assert (b"foreign", DISCONNECTED) in world.commands
        world.ready_foreign(b"again", "greeter")
        assert world.commands[-1] == (b"again", DISCONNECTED)
        assert workers_of(world, "greeter") == 1

    def test_what_dismissed_workers_had_is_not_passed_from_one_to_the_next(self, world: World) -> None:
        for number in range(3):
            world.ready_foreign(b"f%d" % number, "greeter")
        world.ask(service="greeter", within_s=60)
        world.ready(b"ours", "greeter")
        assert [peer for peer, _, _ in world.dispatched] == [b"f0", b"ours"]
        assert world.codes == []


class TestSupersession:
    def test_a_later_incarnation_replaces_an_earlier_one_and_gets_what_that_had(self, world: World) -> None:
        world.ready(b"first", incarnation=1)
        world.ask()
        world.ready(b"second", incarnation=2)
        assert (b"first", DISCONNECTED) in world.commands
        assert [peer for peer, _, _ in world.dispatched] == [b"first", b"second"]
        assert world.counts["requeued"] == 1
        world.answer(0, "from the dead")
        assert world.codes == []
        world.answer(1, "from the living")
        assert world.replies[0].result == {"result": "from the living"}
        assert world.counts["workers_superseded"] == 1

    @pytest.mark.parametrize("incarnation", [1, 2])
    def test_one_that_is_not_later_is_refused(self, world: World, incarnation: int) -> None:
        world.ready(b"present", incarnation=2)
        world.commands.clear()
        world.ready(b"thawed", incarnation=incarnation)
        assert world.commands == [(b"thawed", DISCONNECTED), (b"present", GREETED)]
        assert workers_of(world) == 1

    def test_the_same_process_on_a_new_connection_gets_in_once_the_old_is_known_to_be_gone(self, world: World) -> None:
        world.ready(b"old")
        world.router.receive(b"new", mdp.ready(b"health_monitor", WorkerHello(TOKEN, 1, 1).encode()), 50, world.now)
        _refusal, probe = world.router.outbox
        world.router.outbox.clear()
        world.router.undelivered(probe, world.now, gone=True)
        world.ready(b"new")
        assert world.commands[-1] == (b"new", GREETED)


class TestTurns:
    def test_a_window_is_filled_and_not_exceeded(self, world: World) -> None:
        world.ready(b"w", window=3)
        for _ in range(5):
            world.ask()
        assert len(world.dispatched) == 3
        world.answer(0)
        assert len(world.dispatched) == 4

    def test_foreign_workers_take_turns_one_request_each(self, world: World) -> None:
        for name in (b"a", b"b", b"c"):
            world.ready_foreign(name)
        for _ in range(4):
            world.ask(service="echo")
        assert [peer for peer, _, _ in world.dispatched] == [b"a", b"b", b"c"]
        world.answer(1)
        assert world.dispatched[-1][0] == b"b"
        world.answer(0)
        world.answer(2)
        world.ask(service="echo")
        assert world.dispatched[-1][0] == b"a"

    def test_requests_are_handed_over_in_the_order_of_their_coming(self, world: World) -> None:
        ids = [world.ask(argument=number) for number in range(10)]
        world.ready(b"w", window=1)
        for _ in ids:
            world.answer()
        assert [reply.id for reply in world.replies] == ids

    def test_an_expired_request_gives_its_place_in_the_window_back(self, world: World) -> None:
        world.ready(b"w", window=1)
        world.ask(within_s=1)
        world.ask(within_s=5)
        world.pass_time(1.1)
        assert len(world.dispatched) == 2


class TestLoss:
    def test_what_a_lost_worker_had_is_given_to_the_next_one_first(self, world: World) -> None:
        world.ready(b"w1", window=2)
        ids = [world.ask() for _ in range(3)]
        world.say(b"w1", *mdp.DISCONNECT)
        world.ready(b"w2", incarnation=2)
        assert [request_id_of(body) for peer, _, body in world.dispatched if peer == b"w2"] == ids
        for number in range(2, 5):
            world.answer(number)
        assert [reply.id for reply in world.replies] == ids

    def test_the_second_loss_makes_a_dead_letter(self, world: World) -> None:
        request_id = world.ask(within_s=60)
        for incarnation in (1, 2):
            world.ready(b"w%d" % incarnation, incarnation=incarnation)
            world.say(b"w%d" % incarnation, *mdp.DISCONNECT)
        world.ready(b"w3", incarnation=3)
        assert len(world.dispatched) == 2
        assert world.codes == ["failed"]
        letter = world.router.dead_letters.as_list()[0]
        assert (letter["service"], letter["op"], letter["id"]) == ("health_monitor", "ping", request_id.hex())
        assert world.counts["dead_lettered"] == 1

    def test_what_is_too_late_is_not_given_to_the_next_one(self, world: World) -> None:
        world.ready(b"w1")
        world.ask(within_s=1)
        world.say(b"w1", *mdp.DISCONNECT)
        world.now += 2
        world.ready(b"w2", incarnation=2)
        assert len(world.dispatched) == 1
        assert world.counts["expired"] == 1

    def test_a_silent_worker_is_lost(self, world: World) -> None:
        world.ready(b"w")
        world.ask(within_s=60)
        world.pass_time(SILENCE_S + WORKER_HEARTBEAT_INTERVAL_S + 0.1)
        assert world.commands[-1] == (b"w", DISCONNECTED)
        assert world.counts["requeued"] == 1

    def test_whatever_a_worker_says_keeps_it(self, world: World) -> None:
        world.ready(b"w")
        for _ in range(12):
            world.pass_time(1.0)
            world.say(b"w", *mdp.HEARTBEAT)
        assert workers_of(world) == 1

    def test_the_broker_says_something_every_interval(self, world: World) -> None:
        world.ready(b"w")
        world.router.tick(world.now)
        world.collect()
        world.commands.clear()
        for _ in range(4):
            world.pass_time(WORKER_HEARTBEAT_INTERVAL_S)
            world.say(b"w", *mdp.HEARTBEAT)
        assert world.commands == [(b"w", GREETED)] * 4

    def test_a_broker_that_was_asleep_blames_nobody(self, world: World) -> None:
        world.ready(b"w")
        world.now += 60
        world.router.tick(world.now)
        world.collect()
        assert workers_of(world) == 1
        world.pass_time(SILENCE_S + WORKER_HEARTBEAT_INTERVAL_S + 0.1)
        assert workers_of(world) == 0

    def test_a_foreign_worker_at_work_may_be_silent_until_the_deadline(self, world: World) -> None:
        world.ready_foreign(b"w")
        world.ask(service="echo", within_s=20)
        world.pass_time(19)
        assert workers_of(world, "echo") == 1
        world.pass_time(1.5)
        assert world.codes == ["deadline_passed"]
        assert world.commands[-1] == (b"w", DISCONNECTED)

    def test_an_answer_to_somebody_elses_request_is_not_believed(self, world: World) -> None:
        world.ready(b"w")
        world.ready_foreign(b"liar", "echo")
        world.ask()
        _, address, _ = world.dispatched[0]
        world.say(b"liar", *mdp.final(address, b"h", b"lie"))
        assert world.replies == []
        assert world.counts["late_replies"] == 1


class TestUndelivered:
    def dispatch(self, world: World) -> tuple[bytes, list[bytes], bool]:
        world.ready(b"w")
        header_and_arguments = mdp.request(b"health_monitor", *self.body(world))
        world.router.receive(b"c", header_and_arguments, 50, world.now)
        (outgoing,) = world.router.outbox
        world.router.outbox.clear()
        return outgoing

    @staticmethod
    def body(world: World) -> tuple[bytes, bytes]:
        from protocol.messages import RequestHeader

        return RequestHeader(bytes(16), "ping", int(world.now * 1000) + 60_000).encode(), b"\x80"

    def test_a_worker_that_is_gone_loses_its_requests(self, world: World) -> None:
        world.router.undelivered(self.dispatch(world), world.now, gone=True)
        assert workers_of(world) == 0
        world.ready(b"w2")
        assert world.dispatched[0][0] == b"w2"
        assert "requeued" not in world.counts

    def test_a_worker_that_does_not_read_is_left_alone_until_it_says_something(self, world: World) -> None:
        world.router.undelivered(self.dispatch(world), world.now, gone=False)
        world.ask()
        assert workers_of(world) == 1
        assert world.dispatched == []
        world.say(b"w", *mdp.HEARTBEAT)
        assert [peer for peer, _, _ in world.dispatched] == [b"w", b"w"]
        assert world.counts["dispatched"] == 2


class TestPublications:
    def test_a_worker_of_ours_publishes(self, world: World) -> None:
        world.ready(b"w")
        world.say(b"w", *mdp.publish(b"state.health", b"1"))
        world.say(b"w", *mdp.publish(b"event.x", b"2"))
        assert world.router.publications == [(b"state.health", b"1"), (b"event.x", b"2")]
        assert world.router.topics.names() == ["state.health"]

    def test_others_do_not(self, world: World) -> None:
        world.ready_foreign(b"f")
        world.say(b"f", *mdp.publish(b"state.health", b"lie"))
        assert world.router.publications == []
        assert world.counts["publications_refused"] == 1

    @pytest.mark.parametrize(
        ("topic", "body"),
        [(b"", b""), (b"\xff", b""), (b"a b", b""), (b"x" * 49, b""), (b"state.x", bytes(128 * 1024 + 1))],
    )
    def test_nothing_out_of_bounds_is_passed_on(self, world: World, topic: bytes, body: bytes) -> None:
        world.ready(b"w")
        world.say(b"w", *mdp.publish(topic, body))
        assert world.router.publications == []
        assert workers_of(world) == 1
