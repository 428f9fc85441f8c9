"""Whoever is in control of a host: requests over its socket, many at a time."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from migrate.daemon.address import BadInput
from migrate.daemon.host.requests import LINE_MAX, Request, request_json
from migrate.daemon.launching import lines_of

Json = dict[str, Any]


class Denied(Exception):
    """The host does not do what was asked: `kind` is for programs, `str` for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class HostGone(Exception):
    """The host whose control socket is at `path` has ended, and will not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the host at {path} has ended; start it again from its --state-dir, and migrate host list says which "
            "machines are where"
        )


@attrs.define(eq=False)
class Controller:
    """Made by `controlling`."""

    path: Path
    _stream: trio.SocketStream
    _answers: dict[int, Json] = attrs.field(factory=dict)
    _asked: dict[int, trio.Event] = attrs.field(factory=dict)
    _numbers: int = 0
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    gone: trio.Event = attrs.field(factory=trio.Event)

    async def ask(self, request: Request) -> Json:
        """What the host answers, however long it takes; others may be asked meanwhile.

        Raises:
            Denied: it says no.
            HostGone: it does not answer any more.
        """
        self._numbers += 1
        number, answered = self._numbers, trio.Event()
        line = json.dumps(request_json(number, request)).encode() + b"\n"
        if len(line) > LINE_MAX:
            raise Denied("BadRequest", f"the request has {len(line)} bytes; at most {LINE_MAX} may be")
        self._asked[number] = answered
        try:
            async with self._writing:
                await self._stream.send_all(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise HostGone(self.path) from None
        if self.gone.is_set():
            answered.set()
        await answered.wait()
        answer = self._answers.pop(number, None)
        if answer is None:
            raise HostGone(self.path)
        if "error" in answer:
            raise Denied(answer["error"]["class"], answer["error"]["message"])
        found: Json = answer["ok"]
        return found

    async def _listen(self) -> None:
        try:
            async for line in lines_of(self._stream):
                answer = json.loads(line)
                asked = self._asked.pop(answer["id"], None)
                if asked is not None:
                    self._answers[answer["id"]] = answer
                    asked.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.gone.set()
        for asked in self._asked.values():
            asked.set()


@asynccontextmanager
async def controlling(path: Path) -> AsyncIterator[Controller]:
    """Raises BadInput: no host is in control there."""
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"{path}: no host is there ({reason}); start one with migrate serve --control {path}") from error
    async with stream, trio.open_nursery() as nursery:
        controller = Controller(path, stream)
        nursery.start_soon(controller._listen)
        yield controller
        nursery.cancel_scope.cancel()
