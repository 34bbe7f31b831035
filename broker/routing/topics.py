"""Last values of state topics, for subscribers that come later."""

from protocol.limits import TOPIC_BODY_BYTES_MAX, TOPICS_MAX
from protocol.names import TOPIC_STATE_PREFIX, is_valid_name

_STATE_PREFIX = TOPIC_STATE_PREFIX.encode()


class Topics:
    """The last body of each state topic, at most `TOPICS_MAX`; the one that changed longest ago makes room."""

    def __init__(self) -> None:
        """Start empty."""
        self._last: dict[bytes, bytes] = {}

    def accept(self, topic: bytes, body: bytes) -> bool:
        """Take in a publication; False if it is out of bounds and must not be passed on."""
        if len(body) > TOPIC_BODY_BYTES_MAX or not _is_topic(topic):
            return False
        if topic.startswith(_STATE_PREFIX):
            self._last.pop(topic, None)
            self._last[topic] = body
            if len(self._last) > TOPICS_MAX:
                del self._last[next(iter(self._last))]
        return True

    def last(self, topic: bytes) -> bytes | None:
        """Return the last body of `topic`, if it has one."""
        return self._last.get(topic)

    def matching(self, prefix: bytes) -> list[bytes]:
        """Return the state topics that a subscription to `prefix` covers."""
        return [topic for topic in self._last if topic.startswith(prefix)]

    def names(self) -> list[str]:
        """Return the topics that have a last value."""
        return [topic.decode() for topic in self._last]


def _is_topic(topic: bytes) -> bool:
    return topic.isascii() and is_valid_name(topic.decode())
