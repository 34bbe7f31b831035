"""Redaction: a table of what people really wrote into logs, and properties that hold for any secret."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runtime.redaction import MASK, Redactor, allowed_variables, is_secret_key, secrets_in


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWD", "db_pwd", "dbPassword", "api_key", "apiKey", "API-KEY", "x-api-key", "access.key",
        "Authorization", "Set-Cookie", "credentials", "client_secret", "token", "HF_TOKEN", "PGPASSWORD", "pass",
        "auth", "private_key", "passphrase", "system_prompt", "sessionId",
    ],
)  # fmt: skip
def test_keys_that_tell_of_a_secret(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize("key", ["name", "author", "passed", "key", "monkey", "compass", "seq", "authority", "path"])
def test_keys_that_do_not(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing to hide: 3 of 4", "nothing to hide: 3 of 4"),
        ("password=hunter2", f"password={MASK}"),
        ("password: correct horse battery staple", f"password: {MASK}"),
        ("a\npassword = x y\nb", f"a\npassword = {MASK}\nb"),
        ("a\r\ntoken:x y\r\nb", f"a\r\ntoken:{MASK}\r\nb"),
        ('{"password": "a b", "user": "ada"}', f'{{"password": "{MASK}", "user": "ada"}}'),
        ('{"password": "a\\"b c", "user": "ada"}', f'{{"password": "{MASK}", "user": "ada"}}'),
        (r'{\"password\": \"a b\", \"user\": \"ada\"}', rf'{{\"password\": \"{MASK}\", \"user\": \"ada\"}}'),
        ("{'api_key': 'a b', 'n': 1}", f"{{'api_key': '{MASK}', 'n': 1}}"),
        ("[('Authorization', 'Bearer abc def')]", f"[('Authorization', '{MASK}')]"),
        ('secret = """two\nlines"""\nnext = 1', f'secret = """{MASK}"""\nnext = 1'),
        ('password="never closed\nmore', f"password={MASK}"),
        ("password='a'b c\nnext", f"password={MASK}\nnext"),
        ("password: |\n  line one\n  line two\nuser: ada", f"password: {MASK}\nuser: ada"),
        ('"credentials": {"a": "x"}, "b": 1', f'"credentials": {MASK}'),
        ("Cookie: a=b; c=d\nHost: h", f"Cookie: {MASK}\nHost: h"),
        ("run --password s3cret value --verbose", f"run --password {MASK}"),
        ("run --db-token=s3cret value", f"run --db-token={MASK}"),
        ("GET /x?token=abc&y=1", f"GET /x?token={MASK}"),
        ("header Bearer abcdefgh.ijkl failed", f"header Bearer {MASK} failed"),
        ("to postgres://ada:s3c/r@et@host/db", f"to postgres://{MASK}@host/db"),
        ("to postgres://ada:two words@host/db", f"to postgres://{MASK}@host/db"),
        ("to https://ghp_abc@host", f"to https://{MASK}@host"),
        ("http://host:8080/ was asked for by ada@home", "http://host:8080/ was asked for by ada@home"),
        ("found sk-abcdefghijklmnop1234 in it", f"found {MASK} in it"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", f"{MASK}\nend"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\ncut off", MASK),
        ("tokens: 512, tokens_per_s=3.5", "tokens: 512, tokens_per_s=3.5"),
        ("password=", "password="),
    ],
)  # fmt: skip
def test_texts(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected
    assert Redactor().text(expected) == expected, "what it returns it does not change again"


def test_nested_maps_lists_numbers_and_bytes() -> None:
    document = {
        "host": "db", "auth": {"user": "ada", "password": {"now": "x", "before": ["y"]}}, "list": [{"token": 7}],
        "max_tokens": 512, "pwd": None, "secret": False, "icon": b"1234",
    }  # fmt: skip
    redactor = Redactor()
    assert redactor.value(document) == {
        "host": "db", "auth": MASK, "list": [{"token": MASK}], "max_tokens": 512, "pwd": None, "secret": False,
        "icon": "<4 bytes>",
    }  # fmt: skip
    assert redactor.count == 2


def test_command_lines() -> None:
    command = ["run", "--password", "two words", "--api-key=a b", "-v", "--token", "-x", "DB_PASS=a b", "file"]
    shown = ["run", "--password", MASK, f"--api-key={MASK}", "-v", "--token", MASK, f"DB_PASS={MASK}", "file"]
    assert Redactor().value(command) == shown


def test_the_environment_is_shown_by_name_only() -> None:
    variables = {"PATH": "/bin", "LC_ALL": "C", "HOME_SECRET": "x", "AWS_SESSION": "y", "LC_TOKEN": "z"}
    shown = allowed_variables(variables, ["PATH", "LC_*"])
    assert Redactor().value(shown) == {"PATH": "/bin", "LC_ALL": "C", "LC_TOKEN": MASK}
    assert allowed_variables(variables, []) == {}


def test_known_values_are_found_in_configuration_and_then_everywhere() -> None:
    configuration = {
        "program": {"command": ["x", "--password", "opt word"], "environment": {"PW": "q", "DB_TOKEN": "t0 ken"}},
        "url": "redis://:re dis@host", "auth": "none", "pin": {"secret": 4711},
    }  # fmt: skip
    secrets = secrets_in(configuration)
    assert secrets == {"opt word", "t0 ken", "re dis", "4711"}
    redactor = Redactor(secrets)
    assert redactor.text("it said 't0 ken' and t0%20ken and t0+ken") == f"it said '{MASK}' and {MASK} and {MASK}"
    assert redactor.value({"code": 4711, "sum": "ab4711cd"}) == {"code": MASK, "sum": "ab4711cd"}
    assert redactor.leaks("x t0 ken")
    assert not redactor.leaks(f"x {MASK} none")


SECRETS = st.text(min_size=4, max_size=24).filter(
    lambda text: secrets_in({"password": text}) and text == text.strip() and text not in "password"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(secret=SECRETS, before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_known_secret_is_left_in_any_text(secret: str, before: str, after: str) -> None:
    redactor = Redactor([secret])
    shown = redactor.text(f"{before} {secret} {after}")
    assert not redactor.leaks(shown)
    assert redactor.count >= 1
    if MASK not in secret and secret not in MASK:
        assert all(f" {secret} " not in f" {piece} " for piece in shown.split(MASK))


@settings(max_examples=150, deadline=None)
@given(secret=SECRETS, value=VALUES)
def test_no_known_secret_is_left_in_any_document(secret: str, value: Any) -> None:
    redactor = Redactor([secret])
    document = {"a": value, "b": [f"x {secret} y", {secret: 1}], "password": value}
    texts = json.loads(json.dumps(redactor.value(document)))
    assert texts["password"] == MASK or value is None or isinstance(value, bool)
    assert not any(redactor.leaks(text) for text in _texts(texts))


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab =:\"'\\\n[{,-@/passwordtoken", max_size=60))
def test_redaction_settles_at_once(text: str) -> None:
    once = Redactor().text(text)
    assert Redactor().text(once) == once


@settings(max_examples=100, deadline=None)
@given(value=st.text(alphabet=st.characters(exclude_characters="\r\n\"'[{(", exclude_categories=["Cs"]), min_size=1))
def test_an_unquoted_value_ends_with_its_line(value: str) -> None:
    shown = Redactor().text(f"start\npassword={value}\nend")
    blank = len(value) - len(value.lstrip(" \t"))
    hidden = MASK if value.strip(" \t") else ""
    assert shown == f"start\npassword={value[:blank]}{hidden}\nend"


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in [key, *_texts(item)]]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
