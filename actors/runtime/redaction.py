"""Takes secrets out of what leaves the machine: bundles, and the configuration in the audit trail. Pure.

What is taken out, and how far:

========================================= ==========================================================================
found                                     replaced by `MASK`
========================================= ==========================================================================
a value known to be secret                wherever it stands, also escaped as in JSON, URLs, Python, base64
a map's entry whose key tells of a secret the whole value, whatever is nested in it
``key=value``, ``key: value`` in a text   to the end of the value: of its quotes, else of the line, spaces included
``--key value``                           the next argument; in a text the rest of the line
``scheme://user:password@``               everything between the slashes and the @
``Bearer ...``, keys of well-known shape  the token
a private key in PEM                      the whole block
bytes                                     dropped, only their number is told
========================================= ==========================================================================

When in doubt too much is taken out. What no rule can tell (a secret told in prose, which no configuration names) stays.
"""

import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MASK: Final = "<redacted>"
SECRET_CHARACTERS_MIN: Final = 4
"""Shorter values are taken out where their key stands, but not looked for elsewhere: they are everywhere."""
WHOLE_WORD_CHARACTERS_MAX: Final = 7
"""Known values up to this length count only as whole words: a PIN is no part of a checksum."""
DEPTH_MAX: Final = 32

_KEY_PARTS: Final = (
    "password", "passwd", "passphrase", "pwd", "token", "secret", "apikey", "accesskey", "privatekey", "signingkey",
    "encryptionkey", "authorization", "cookie", "credential", "sessionid", "prompt",
)  # fmt: skip
"""A key that contains one of them, whatever its case and punctuation, tells of a secret (or, the last, of a person)."""
_KEY_WORDS: Final = frozenset({"pass", "auth", "jwt", "otp"})
"""So does a key with one of them as a word of its own."""
_COMMONPLACE: Final = frozenset(
    {"true", "false", "none", "null", "default", "basic", "bearer", "digest", "auto", "enabled", "disabled", "required"}
)
"""Values of such keys that are no secrets elsewhere (``auth = "none"``)."""

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_HINT: Final = re.compile(r"[:=,]|--|\s-\w")
_PAIR: Final = re.compile(r"""(?P<key>[A-Za-z0-9_.\-]{2,128})(?:(?P<quote>\\*["'])\s*[:=,]|\s*[:=])[ \t]*""")
_OPTION: Final = re.compile(r"(?:^|(?<=[\s\"'\[]))--?(?P<key>[A-Za-z][\w.\-]*)(?:\\*[\"'],?)?[ \t]+")
_DELIMITER: Final = re.compile(r'\\*(?:"""|\'\'\'|"|\')')
_AFTER_QUOTES: Final = frozenset(",;)}]& \t\r\n")
_LINE_END: Final = re.compile(r"[\r\n]|$")
_BLOCK: Final = re.compile(r"[ \t]*[|>\\]?[-+]?[ \t]*(?:\r?\n[ \t]+[^\r\n]*)+")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?![\w.])")
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_URL: Final = re.compile(r"""([A-Za-z][A-Za-z0-9+.\-]*://)[^\s"'<>]+@""")
_URL_SPACED: Final = re.compile(r"""([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/@:"'<>]*:(?!\d{1,5}(?:[/\s]|$))[^\n"'<>]*@""")
_URL_PASSWORD: Final = re.compile(r"""[A-Za-z][A-Za-z0-9+.\-]*://[^\s/@:"'<>]*:([^\n"'<>]+)@""")
_SHAPES: Final = re.compile(
    r"\b(?:(?<=Bearer )|(?<=bearer )|(?<=Basic ))[A-Za-z0-9._~+/=\-]{8,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[A-Za-z0-9_\-]{16,}|\bxox[abprs]-[A-Za-z0-9\-]{10,}"
    r"|\bAKIA[A-Z0-9]{16}|\bhf_[A-Za-z0-9]{20,}|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"
)


def is_secret_key(key: str) -> bool:
    """Tell whether a map's key, an option or a variable of this name holds what must not be shown."""
    words = [word.lower() for word in _WORD.findall(key)]
    together = "".join(words)
    return any(part in together for part in _KEY_PARTS) or not _KEY_WORDS.isdisjoint(words)


def secrets_in(value: Any) -> set[str]:
    """Return the secret values in a parsed configuration: those that are worth looking for elsewhere."""
    return {text for text in _secrets(value, DEPTH_MAX) if _is_worth_finding(text)}


def allowed_variables(variables: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """Return the variables whose name is allowed, or begins with an allowed name that ends in ``*``."""
    names = tuple(allowed)
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    return {name: value for name, value in variables.items() if name in names or name.startswith(prefixes)}


class Redactor:
    """Takes secrets out, and counts what it took.

    Attributes:
        count: replacements so far.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Look for the values `secrets` everywhere, beside what the rules find."""
        self.count = 0
        self._known = _known_pattern({text for text in secrets if _is_worth_finding(text)})

    def value(self, value: Any, *, depth: int = DEPTH_MAX) -> Any:
        """Return a JSON value without secrets; lists of texts are also read as command lines."""
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return value if self.text(repr(value)) == repr(value) else MASK
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if depth <= 0:
            return self._mask()
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._entry(str(key), item, depth - 1) for key, item in value.items()}
        if isinstance(value, Iterable):
            return self._items(list(value), depth - 1)
        return self.text(str(value))

    def text(self, text: str) -> str:
        """Return a text without secrets. What it returns it would not change again."""
        text = self._known_out(text)
        if "PRIVATE KEY-----" in text:
            text = self._substitute(_PEM, MASK, text)
        if "://" in text and "@" in text:
            text = self._substitute(_URL_SPACED, rf"\1{MASK}@", text)
            text = self._substitute(_URL, rf"\1{MASK}@", text)
        text = self._substitute(_SHAPES, MASK, text)
        return self._pairs_out(text) if _HINT.search(text) else text

    def leaks(self, text: str) -> bool:
        """Tell whether a known secret stands in `text`."""
        return self._known is not None and any(match.group() != MASK for match in self._known.finditer(text))

    def _entry(self, key: str, value: Any, depth: int) -> Any:
        if not is_secret_key(key) or value is None or isinstance(value, bool) or _is_count(key, value):
            return self.value(value, depth=depth)
        return MASK if value == MASK else self._mask()

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        shown: list[Any] = []
        follows_option = False
        for item in items:
            is_text = isinstance(item, str)
            shown.append(self._mask() if follows_option and is_text and item != MASK else self.value(item, depth=depth))
            follows_option = is_text and item.startswith("-") and is_secret_key(item) and "=" not in item
        return shown

    def _known_out(self, text: str) -> str:
        return text if self._known is None else self._substitute(self._known, MASK, text)

    def _substitute(self, pattern: re.Pattern[str], replacement: str, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            new = match.expand(replacement)
            self.count += new != match.group()
            return new

        return pattern.sub(replace, text)

    def _pairs_out(self, text: str) -> str:
        """Mask the values of ``key=value`` and ``--key value``."""
        parts: list[str] = []
        done = at = 0
        while (found := _next_key(text, at)) is not None:
            start, key = found.end(), found["key"]
            at = start
            if not is_secret_key(key) or start >= len(text) or _is_told_count(key, text, start):
                at = found.end("key")
                continue
            begin, end = _extent(text, start)
            if begin < end:
                if text[begin:end] != MASK:
                    self.count += 1
                parts += [text[done:begin], MASK]
                done = end
            at = max(end, start)
        return "".join([*parts, text[done:]]) if parts else text

    def _mask(self) -> str:
        self.count += 1
        return MASK


def _next_key(text: str, at: int) -> re.Match[str] | None:
    pair, option = _PAIR.search(text, at), _OPTION.search(text, at)
    if pair is None or option is None:
        return pair or option
    return option if option.start("key") < pair.start("key") else pair


def _extent(text: str, start: int) -> tuple[int, int]:
    """Return where the value that begins at `start` begins and ends, its quotes left standing."""
    delimiter = _DELIMITER.match(text, start)
    if delimiter is None:
        if text[start] in "[{(":
            return start, len(text)  # nested: where it ends cannot be told for certain
        if (block := _BLOCK.match(text, start)) is not None:
            return start, block.end()
        return start, _line_end(text, start)
    begin = delimiter.end()
    closing = re.compile(rf"(?<!\\){re.escape(delimiter.group())}").search(text, begin)
    if closing is None:
        return start, len(text)
    if closing.end() < len(text) and text[closing.end()] not in _AFTER_QUOTES:
        return start, _line_end(text, closing.end())  # the value goes on behind its quotes, or they are inner ones
    return begin, closing.start()


def _line_end(text: str, at: int) -> int:
    match = _LINE_END.search(text, at)
    return match.start() if match else len(text)


def _is_count(key: str, value: Any) -> bool:
    """Tell whether it is a number of tokens, as language models count them."""
    return isinstance(value, int | float) and "tokens" in [word.lower() for word in _WORD.findall(key)]


def _is_told_count(key: str, text: str, start: int) -> bool:
    return _NUMBER.match(text, start) is not None and _is_count(key, 0)


def _is_worth_finding(text: str) -> bool:
    return (
        len(text) >= SECRET_CHARACTERS_MIN and text.lower() not in _COMMONPLACE and not text.isspace() and text != MASK
    )


def _secrets(value: Any, depth: int, *, secret: bool = False) -> Iterable[str]:
    if isinstance(value, str):
        yield from (value, value.strip()) if secret else _URL_PASSWORD.findall(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if secret:
            yield str(value)
    elif isinstance(value, Mapping) and depth > 0:
        for key, item in value.items():
            told = is_secret_key(str(key)) and not _is_count(str(key), item)
            yield from _secrets(item, depth - 1, secret=secret or told)
    elif isinstance(value, list | tuple) and depth > 0:
        follows_option = False
        for item in value:
            name, equals, given = item.partition("=") if isinstance(item, str) else ("", "", "")
            option = name.startswith("-") and is_secret_key(name)
            if equals and is_secret_key(name):
                yield given
            yield from _secrets(item, depth - 1, secret=secret or follows_option)
            follows_option = option and not equals


def _known_pattern(secrets: set[str]) -> re.Pattern[str] | None:
    if not secrets:
        return None
    forms = {form for secret in secrets for form in _forms(secret)}
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join([re.escape(MASK), *map(_form_pattern, longest_first)]))


def _forms(secret: str) -> Iterable[str]:
    """Yield how a secret may be spelled."""
    from urllib.parse import quote, quote_plus  # noqa: PLC0415 - the launcher, which knows no secrets, imports this

    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield repr(secret)[1:-1]
    data = secret.encode("utf-8", "surrogatepass")
    yield quote(data, safe="")
    yield quote(data)
    yield quote_plus(data)
    encoded = binascii.b2a_base64(data, newline=False).decode().rstrip("=")
    yield encoded
    yield encoded.replace("+", "-").replace("/", "_")


def _form_pattern(form: str) -> str:
    pattern = re.escape(form)
    if len(form) > WHOLE_WORD_CHARACTERS_MAX:
        return pattern
    return rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
