"""From one host to another: what a control plane does, as programs and `migrate host send` use it."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import trio

from migrate.daemon.host.client import Controller, Denied, HostGone
from migrate.daemon.host.requests import Cancel, Offer, Take, Wait

Document = dict[str, Any]


def _ignore(_: Document) -> None:
    """Nobody wants to know."""


async def send_all(
    source: Controller,
    target: Controller,
    machines: Sequence[str],
    retries: int,
    note: Callable[[Document], None] = _ignore,
) -> list[Document]:
    """One document for each of `machines`: its outcome, as the target tells it.  `note` is told of each at once.

    Raises:
        HostGone: one of the hosts has ended.
    """
    done: dict[int, Document] = {}

    async def one(number: int, machine: str) -> None:
        try:
            document = await send_one(source, target, machine, retries)
        except Denied as error:
            failure = {"class": error.kind, "message": str(error), "side": "host"}
            document = {"outcome": "failed", "machine": machine, "error": failure, "blackout_ms": None}
        done[number] = {"asked": machine, **document}
        note(done[number])

    async with trio.open_nursery() as watching:  # whoever waits for one host does not see the other go
        for host in (source, target):
            watching.start_soon(_fail_when_gone, host)
        async with trio.open_nursery() as nursery:
            for number, machine in enumerate(machines):
                nursery.start_soon(one, number, machine)
        watching.cancel_scope.cancel()
    return [done[number] for number in range(len(machines))]


async def _fail_when_gone(host: Controller) -> None:
    await host.gone.wait()
    raise HostGone(host.path)


async def send_one(source: Controller, target: Controller, machine: str, retries: int) -> Document:
    """Offer, take, wait.  Raises Denied, HostGone."""
    migration = uuid4()
    offered = await source.ask(Offer(machine=machine, migration=migration, retries=retries))
    if offered["stage"] != "ready":
        return offered
    try:
        await target.ask(Take(source=offered["address"], migration=migration, retries=retries))
        taken = await target.ask(Wait(migration=migration))
    except Denied:
        await source.ask(Cancel(machine=str(migration)))
        raise
    if taken["outcome"] != "migrated":
        await _withdraw(source, migration)
    return taken


async def _withdraw(source: Controller, migration: UUID) -> None:
    """Nobody comes for it any more; the source may know that already."""
    try:
        await source.ask(Cancel(machine=str(migration)))
    except Denied:
        return
