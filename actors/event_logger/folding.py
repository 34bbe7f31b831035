"""Which texts a search takes for the same: the letters of both cases, as the index's tokenizer folds them.

One function decides for the index and for the scan, so both find the same events; it asks SQLite's own trigram
tokenizer what it makes of every letter (Unicode's simple case folding). LIKE knows only the 26 letters of ASCII: it may
rule an event out by a pattern from here, never in.
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import apsw

from actors.event_logger.records import Event

TRIGRAM: Final = 3
"""Characters of a token: shorter texts are in no index."""
LIKE_ESCAPE: Final = "\\"
SEARCHED: Final = "message || char(10) || event_type || char(10) || component || char(10) || attributes"
"""The text of an event in SQL, its parts on lines of their own: what is indexed."""

_TOKENIZER: Final = "trigram"
_LETTERS: Final = (
    (0x41, 0x5B),
    (0x80, 0x600),
    (0x1000, 0x1100),
    (0x13A0, 0x1400),
    (0x1C80, 0x1D00),
    (0x1E00, 0x2200),
    (0x2480, 0x2500),
    (0x2C00, 0x2E00),
    (0xA640, 0xA800),
    (0xAB30, 0xABC0),
    (0xFF20, 0xFF60),
    (0xFFFD, 0x10000),
    (0x10400, 0x10600),
    (0x118A0, 0x118E0),
    (0x1E900, 0x1E950),
)
"""Where Unicode has letters of two cases, and what stands for a character that is none."""
_ASKED_AT_ONCE: Final = 256
_ASCII_WITH_RELATIVES: Final = "ks"
"""Letters of ASCII that other characters fold to: the Kelvin sign and the long s."""


def fold(text: str) -> str:
    """Return what two texts have in common that differ only in the case of their letters; as long as `text`."""
    return text.lower() if text.isascii() else text.translate(_folds())


def holds(event: Event, folded: str) -> bool:
    """Tell whether a text stands in one of the parts of `event` that are searched; `folded` is that text, folded."""
    parts = (event.message, event.event_type, event.component, event.attributes)
    # One look for all of them, unless the text might reach over an end.
    return folded in fold("\n".join(parts)) and ("\n" not in folded or any(folded in fold(part) for part in parts))


def trigrams(text: str) -> list[str]:
    """Return the tokens of `text`, each once; none if it is too short."""
    folded = fold(text)
    return list(dict.fromkeys(folded[start : start + TRIGRAM] for start in range(len(folded) - TRIGRAM + 1)))


def like_pattern(text: str) -> str:
    """Return a pattern for LIKE that every text which holds `text` matches, and some others.

    Its escape character is `LIKE_ESCAPE`.
    """
    folded = fold(text)
    wild = set(_ASCII_WITH_RELATIVES) if folded.isascii() else {chr(code) for code in _folds().values()}
    characters = []
    for character in folded:
        if character.isascii() and character not in _ASCII_WITH_RELATIVES:
            characters.append(LIKE_ESCAPE + character if character in "%_\\" else character)
        else:
            characters.append("_" if character in wild else character)
    return f"%{''.join(characters)}%"


def match_all(tokens: Sequence[str]) -> str:
    """Return an FTS5 query for the events that have all of these trigrams; nothing in them can be taken for syntax."""
    return " AND ".join('"' + token.replace('"', '""') + '"' for token in tokens)


def folding_version() -> int:
    """Return a number that changes if a SQLite folds otherwise: an index that was written under another is useless."""
    version = 0
    for _, folded in _ask():
        version = zlib.crc32(folded.encode(), version)
    return version


@cache
def _folds() -> dict[int, int]:
    """Return the characters that the tokenizer changes, and what it makes of them."""
    pairs = ((ord(before), ord(after)) for pair in _ask() for before, after in zip(*pair, strict=True))
    return {before: after for before, after in pairs if before != after}


def _ask() -> Iterator[tuple[str, str]]:
    """Yield characters and what the tokenizer makes of them, a few at a time: an idle process remembers the peak."""
    connection = apsw.Connection(":memory:")
    try:
        tokenize = connection.fts5_tokenizer(_TOKENIZER, [])
        for start, end in _LETTERS:
            for first in range(start, end, _ASKED_AT_ONCE):
                characters = "".join(map(chr, range(first, min(end, first + _ASKED_AT_ONCE))))
                tokens = tokenize(
                    f"{characters}zz".encode(),
                    apsw.FTS5_TOKENIZE_DOCUMENT,
                    None,
                    include_offsets=False,
                    include_colocated=False,
                )
                yield characters, "".join(str(token)[0] for token in tokens)
    finally:
        connection.close()
