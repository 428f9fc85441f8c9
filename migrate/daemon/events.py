"""Events: what happens in a daemon, one JSON object a line, for programs that watch.

Every event has `event`, `side` and `at_ns` (the host's monotonic clock).  The events of one process are in order.
"""

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

import attrs

from migrate.protocol.messages import Message

Event = dict[str, Any]


@attrs.define
class EventLog:
    """Tells every listener; the observer port of the engines.

    Facts `about` whom it is are part of every event.  What is `unheard` is told to nobody.  With `tells_messages` every
    message of the conversation is an event, too: `sends` when it is about to leave, and `receives` when it has come,
    each with `name` and `bytes`.
    """

    side: str
    unheard: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    listeners: list[Callable[[Event], None]] = attrs.field(factory=list)
    tells_messages: bool = False
    about: dict[str, Any] = attrs.field(factory=dict)

    def tell(self, event: str, **facts: Any) -> None:
        if event in self.unheard:
            return
        line = {"event": event, "side": self.side, "at_ns": time.monotonic_ns(), **self.about, **facts}
        for listener in self.listeners:
            listener(line)

    def note_message(self, event: str, message: Message, size: int, stream: int = 0) -> None:
        if self.tells_messages:
            about = {"stream": stream} if stream else {}
            self.tell(event, name=type(message).__name__, bytes=size, **about)


def json_lines(stream: TextIO) -> Callable[[Event], None]:
    """A listener that writes to `stream`, and stops for good when nobody reads any more."""
    broken = False

    def write(event: Event) -> None:
        nonlocal broken
        if not broken:
            try:
                stream.write(json.dumps(event) + "\n")
                stream.flush()
            except OSError:
                broken = True

    return write
