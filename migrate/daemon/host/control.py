"""The control socket of a host: whoever may open it may do anything with the host's machines.

It is a Unix socket of mode 0600.  Requests are read from each connection as fast as they are begun, answers come in the
order in which they are ready.  What was begun goes on when the connection ends; only its answer is lost.

Bounds: connections, requests of one connection that are not answered yet (no more are read then), bytes of a request.
"""

import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from migrate.daemon.address import Address, BadInput
from migrate.daemon.birth import born
from migrate.daemon.guest_facts import guest_facts
from migrate.daemon.host.host import Ending, Host, NotPossible
from migrate.daemon.host.offers import Migration
from migrate.daemon.host.requests import (
    LINE_MAX,
    BadRequest,
    Boot,
    Cancel,
    Inspect,
    Limit,
    List,
    Offer,
    Request,
    Status,
    Stop,
    Take,
    Wait,
    read_request,
)
from migrate.daemon.run import Birthplace
from migrate.protocol.messages import NAME_MAX
from migrate.specs.files import SpecFileError, read_spec_document
from sim_vmm.guest import LedgerGuest, StampGuest, make_guest

CONNECTIONS_MAX: Final = 64
UNANSWERED_MAX: Final = 4096
CHUNK_BYTES: Final = 1 << 16

Json = dict[str, Any]


@attrs.define(eq=False)
class Control:
    """`on_stop` ends the host, and returns with what is left when nothing is in progress any more.

    `resources` says what the process takes.
    """

    path: Path
    host: Host
    on_stop: Callable[[Ending], Awaitable[Json]]
    resources: Callable[[], Json]
    parted: trio.Event = attrs.field(factory=trio.Event)
    """Whoever asked for the end has heard of it."""
    _connections: int = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        await trio.serve_listeners(self._converse, [listener])

    async def _converse(self, stream: trio.SocketStream) -> None:
        if self._connections >= CONNECTIONS_MAX:
            await stream.aclose()
            return
        self._connections += 1
        try:
            async with stream:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._read(stream)
        finally:
            self._connections -= 1

    async def _read(self, stream: trio.SocketStream) -> None:
        unanswered, writing = trio.Semaphore(UNANSWERED_MAX), trio.Lock()

        async def answer(number: int | None, said: Json) -> None:
            async with writing:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # nobody listens any more
                    await stream.send_all(json.dumps({"id": number, **said}).encode() + b"\n")

        async def carry_out(number: int, request: Request) -> None:
            try:
                said = await self._said(request)
            finally:
                unanswered.release()
            await answer(number, said)
            if isinstance(request, Stop):
                self.parted.set()

        async with trio.open_nursery() as nursery:
            buffer = bytearray()
            while data := await stream.receive_some(CHUNK_BYTES):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    try:
                        number, request = read_request(line)
                    except BadRequest as error:
                        await answer(error.number, _error("BadRequest", str(error)))
                        continue
                    await unanswered.acquire()
                    nursery.start_soon(carry_out, number, request)
                if len(buffer) > LINE_MAX:
                    await answer(None, _error("BadRequest", f"a request has at most {LINE_MAX} bytes"))
                    break
            nursery.cancel_scope.cancel()

    async def _said(self, request: Request) -> Json:
        try:
            return {"ok": await self._do(request)}
        except NotPossible as error:
            return _error(error.kind, str(error))
        except (BadInput, SpecFileError) as error:
            return _error("BadInput", str(error))

    async def _do(self, request: Request) -> Json:
        host = self.host
        match request:
            case Status():
                return {**host.status(), **self.resources()}
            case List(machine=machine):
                found = host.all if machine is None else [host.find(machine)]
                return {"machines": [hosted.as_json() for hosted in found]}
            case Boot():
                return await self._boot(request)
            case Limit(migrations_max=migrations_max, bandwidth=bandwidth):
                host.limit(migrations_max, bandwidth)
                return host.status()
            case Inspect(machine=machine):
                hosted = host.find(machine)
                runner = hosted.runner
                facts = None if runner is None else guest_facts(runner.program, runner.machine)
                return {**hosted.as_json(), "facts": facts}
            case Stop(how=how):
                if how not in list(Ending):
                    raise NotPossible("BadRequest", f"how is {how!r}: expected {' or '.join(Ending)}")
                return await self.on_stop(Ending(how))
            case Offer() | Take() | Wait() | Cancel():
                return await self._migrate(request)

    async def _migrate(self, request: Offer | Take | Wait | Cancel) -> Json:
        host = self.host
        match request:
            case Offer(machine=machine, migration=migration, retries=retries):
                offered = await host.offer(machine, migration, retries)
                return {"address": host.address, **_so_far(offered)}
            case Take(source=source, migration=migration, retries=retries):
                return _so_far(host.take(Address.parse(source), migration, retries))
            case Wait(migration=migration):
                waited = host.migration(migration)
                await waited.over.wait()
                return _so_far(waited)
            case Cancel(machine=machine):
                return {"cancelled": host.cancel(machine).value}

    async def _boot(self, asked: Boot) -> Json:
        spec = born(read_spec_document(asked.spec, asked.name, asked.api_version).spec, asked.memory_mb)
        try:
            program = make_guest(asked.guest)
        except ValueError as error:
            raise BadInput(str(error)) from error
        if isinstance(program, StampGuest | LedgerGuest):
            program = attrs.evolve(program, seed=asked.seed)
        if asked.count < 1 or not asked.name:
            raise NotPossible("BadRequest", "count is 1 or more, and name is not empty")
        names = [asked.name] if asked.count == 1 else [f"{asked.name}-{n}" for n in range(1, asked.count + 1)]
        if len(names[-1]) > NAME_MAX:
            raise NotPossible("BadRequest", f"name has more than {NAME_MAX} characters with its number")
        booted: dict[str, Json] = {}
        failed: list[NotPossible] = []

        async def boot(name: str) -> None:
            try:
                hosted = await self.host.boot(Birthplace(spec=spec, name=name, program=program))
            except NotPossible as error:
                failed.append(error)
            else:
                booted[name] = {"machine": name, "vm_id": str(hosted.vm_id)}

        async with trio.open_nursery() as nursery:  # the host sees to it that not all do at once
            for name in names:
                nursery.start_soon(boot, name)
        if failed:
            so_far = f"; {len(booted)} of {len(names)} are here" if len(names) > 1 else ""
            raise NotPossible(failed[0].kind, f"{failed[0]}{so_far}") from failed[0]
        return {"machines": [booted[name] for name in names]}


def _so_far(migration: Migration) -> Json:
    concluded = migration.conclusion
    return {"stage": migration.stage.value, **({} if concluded is None else concluded.as_json())}


def _error(kind: str, message: str) -> Json:
    return {"error": {"class": kind, "message": message}}


def listen_for_control(path: Path) -> trio.SocketListener:
    """A socket that only this user can open.

    Raises:
        BadInput: somebody else is there, or the host does not give it.
    """
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as other:
                if other.connect_ex(os.fspath(path)) == 0:
                    raise BadInput(f"{path}: a host is in control there; stop it, or give another --control")
            path.unlink()  # its process has died
        listener = socket.socket(socket.AF_UNIX)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            listener.listen(CONNECTIONS_MAX)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise BadInput(f"{path}: cannot be listened on: {error.strerror or error}") from error
    listener.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))
