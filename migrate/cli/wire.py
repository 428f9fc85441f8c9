"""`migrate wire`: the hub of a wire, in a process of its own."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from migrate.cli.output import complain
from migrate.daemon.address import BadInput
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.wire import WireError, WireObserver, WireRecord, recorder


def wire(
    path: Path,
    *,
    record: Path | None = None,
    attached: Annotated[bool, Parameter(negative="", help="End when standard input ends.", show=False)] = False,
) -> int:
    """Carry frames between the NICs of all daemons with --wire PATH, and record who spoke when, until interrupted.

    Parameters
    ----------
    path
        Where the wire's socket is to be.
    record
        The file to write a line of JSON to for every frame; an old one is written on.
    """
    with ExitStack() as stack:
        note: Callable[[WireRecord], None] = _ignore
        if record is not None:
            try:
                note = recorder(stack.enter_context(record.open("a")))
            except OSError as error:
                raise BadInput(f"{record}: cannot be written: {error.strerror or error}") from error
        observer = WireObserver(path, note)
        refused = None
        try:
            trio.run(_serve, observer, attached)
        except* WireError as group:
            refused = str(group.exceptions[0])
        if refused is not None:
            raise BadInput(refused)
    complain(f"the wire at {path} has carried {observer.seen} frames")
    return ExitCode.DONE


async def _serve(observer: WireObserver, attached: bool) -> None:
    async with trio.open_nursery() as nursery:
        if attached:
            nursery.start_soon(_heed_parent, nursery.cancel_scope)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await nursery.start(observer.serve)
            complain(f"the wire at {observer.path} is there; Ctrl-C takes it away")
            async for _ in signals:
                break
        nursery.cancel_scope.cancel()


async def _heed_parent(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        async for _ in stdin:
            pass
    scope.cancel()


def _ignore(_record: WireRecord) -> None:
    """Nobody wants to know."""
