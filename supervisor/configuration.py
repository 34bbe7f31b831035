"""The configuration in force, in the audit trail: what it is at every start by a person, and what has changed since.

A small file in DATA remembers what was in force last, without secrets. So that a changed secret is noticed too, it has
a salted digest of everything.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from actors.runtime.paths import write_atomically
from protocol.names import LAUNCHER
from protocol.severity import Severity
from supervisor.model import Say
from supervisor.records import Records
from supervisor.settings import Settings

CONFIGURATION_FILE: Final = "configuration.json"
"""In DATA: what was in force at the last start."""
A_SECRET: Final = "(a value that is not shown)"
_SALT_BYTES: Final = 16


def tell_configuration(settings: Settings, records: Records) -> None:
    """Enter the settings in force, and how they differ from those of the start before. May wait for the disk.

    For a start by a person: a successor goes on with what was in force.
    """
    given = {name: asdict(section) for name, section in settings.sections.items()}
    shown = given if settings.config is None else _redacted(given)
    path = os.path.join(settings.data_dir, CONFIGURATION_FILE)
    before = _remembered(path)
    salt = bytes.fromhex(before["salt"]) if before else os.urandom(_SALT_BYTES)
    digest = _digest(salt, given)
    where = settings.config_path or "no file: the defaults"
    said = Say(Severity.INFO, "configuration_in_force", f"configuration in force: {where}", LAUNCHER)
    records.say(said, path=settings.config_path, settings=shown)
    if before is not None and before["digest"] != digest:
        changed = changes(before["settings"], shown) or {A_SECRET: {}}
        message = f"the configuration has changed since the last start: {', '.join(changed)}"
        records.say(Say(Severity.NOTICE, "configuration_changed", message, LAUNCHER), changes=changed)
    if before is None or before["digest"] != digest:
        document = {"settings": shown, "salt": salt.hex(), "digest": digest}
        try:
            write_atomically(path, json.dumps(document, indent=1).encode(), sync=False)
        except OSError:  # a full disk keeps nobody from starting; the next start compares with an older one
            return


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ``{"section.key": {"from", "to"}}`` of what differs; what one of the two lacks is None there."""
    old, new = _flat(before), _flat(after)
    return {
        name: {"from": old.get(name), "to": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in dict(keys).items()}


def _redacted(given: dict[str, Any]) -> dict[str, Any]:
    from actors.runtime.redaction import Redactor, secrets_in  # noqa: PLC0415 - the defaults hold no secret

    shown: dict[str, Any] = Redactor(secrets_in(given)).value(given)
    return shown


def _digest(salt: bytes, given: dict[str, Any]) -> str:
    from actors.runtime.digests import sha256  # noqa: PLC0415 - once in a start

    return sha256(salt + json.dumps(given, sort_keys=True).encode()).hex()


def _remembered(path: str) -> dict[str, Any] | None:
    """Return what the file says; None if there is none, or it is damaged."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
        bytes.fromhex(document["salt"])
        _flat(document["settings"])
        return {key: document[key] for key in ("settings", "salt", "digest")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
