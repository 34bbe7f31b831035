"""Arguments are held to their declaration before a handler sees them."""

from typing import Any

import pytest

from actors.runtime.operations import ArgumentRules, Operation, Request, describe
from protocol.errors import ErrorCode, ProtocolError

OPERATION = Operation(
    "query",
    "find events",
    {
        "text": "str",
        "limit": "int? rows",
        "since": "float? seconds ago",
        "tags": "list?",
        "more": "any?",
        "flag": "bool?",
    },
    lambda _: {},
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "x"},
        {"text": "", "limit": 3, "since": 2, "tags": ["a"], "more": {"k": 1}, "flag": False},
        {"text": "x", "limit": 2**63 - 1, "since": 1.5},
    ],
)
def test_what_fits_passes(arguments: dict[str, Any]) -> None:
    before = dict(arguments)
    ArgumentRules(OPERATION).check(arguments)
    assert arguments == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "text"),
        ({"text": None}, "text"),
        ({"text": 1}, "text"),
        ({"text": "x", "limit": True}, "limit"),
        ({"text": "x", "limit": 2**63}, "limit"),
        ({"text": "x", "limit": 1.0}, "limit"),
        ({"text": "x", "since": float("nan")}, "since"),
        ({"text": "x", "since": float("inf")}, "since"),
        ({"text": "x", "flag": 1}, "flag"),
        ({"text": "x", "colour": "red"}, "colour"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ProtocolError, match=named) as refused:
        ArgumentRules(OPERATION).check(arguments)
    assert refused.value.code == ErrorCode.BAD_REQUEST


def test_none_for_an_optional_argument_is_the_same_as_leaving_it_out() -> None:
    arguments = {"text": "x", "limit": None}
    ArgumentRules(OPERATION).check(arguments)
    assert arguments == {"text": "x"}


def test_a_declaration_without_a_type_is_refused_when_the_actor_starts() -> None:
    with pytest.raises(ValueError, match="number"):
        ArgumentRules(Operation("op", "", {"n": "number"}, lambda _: {}))


def test_describe_tells_operations_arguments_and_units() -> None:
    answer = describe("shop", [OPERATION], "1.2.3", 64)
    assert answer["service"] == "shop"
    assert answer["operations"][0]["arguments"]["limit"] == "int? rows"


def test_a_request_is_answered_once() -> None:
    answers: list[Any] = []
    request = Request(b"i" * 16, "op", {}, (), 1.0, lambda *outcome: answers.append(outcome))
    request.reply({"a": 1})
    with pytest.raises(RuntimeError, match="twice"):
        request.fail(ErrorCode.FAILED, "no")
    assert len(answers) == 1
