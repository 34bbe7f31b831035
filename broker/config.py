"""`[broker]` of reliability.toml."""

from dataclasses import dataclass

from actors.runtime.config import bounded


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The broker's own settings.

    Attributes:
        memory_mib_max: resident memory above which every connection is dropped, with all that is queued for it. The
            broker bounds what it holds itself; this bounds what a peer can make the transport hold, such as a message
            that never ends. Honest peers are back within milliseconds.
    """

    memory_mib_max: int = bounded(768, 96, 65536)
