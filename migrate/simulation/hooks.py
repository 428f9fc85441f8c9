"""Where a fault may strike: everything that happens in a simulated world passes here first.

A hook returns to let the world go on.  It may also change what goes out, act on the world (cut a connection, kill a
node), or raise: a `MigrationError` where the operation is to fail, `Killed` if it has just killed whoever called.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migrate.protocol.messages import Failure, Message, Role

if TYPE_CHECKING:
    from migrate.simulation.link import SimulatedLink
    from migrate.simulation.node import Life, Node
    from migrate.simulation.world import World


class Hooks:
    """Does nothing, and is told everything."""

    @property
    def seed(self) -> int:
        """From which follows in which order several connections deliver."""
        return 0

    def begin(self, world: "World") -> None:
        """The run is about to begin."""

    def sending(self, link: "SimulatedLink", message: Message, data: bytes) -> bytes:
        """`link` is about to send `data`, which encodes `message`, and guest RAM if it announces any."""
        return data

    def sent(self, link: "SimulatedLink", message: Message) -> None:
        """It is in the hands of the network."""

    def received(self, link: "SimulatedLink", message: Message) -> None:
        """The engine is about to see `message`."""

    def entering(self, life: "Life", side: Role, phase: str) -> None:
        """An engine enters a phase of an attempt."""

    def writing(self, life: "Life") -> None:
        """A record is about to be written."""

    def written(self, life: "Life") -> None:
        """It is durable, and nobody knows yet."""

    def taking(self, life: "Life") -> None:
        """The register of the shared storage is about to be changed."""

    def taken(self, life: "Life") -> None:
        """It is changed, and nobody knows yet."""

    def exporting(self, life: "Life") -> None:
        """The devices of a paused machine are about to be exported."""

    def importing(self, life: "Life") -> None:
        """Device state is about to be imported."""

    def at_rest(self, world: "World") -> None:
        """Every task waits: somebody is about to be connected, or all is well again from here on."""

    # Where nothing strikes: of these, but for the first, only a traced world tells

    def hears_failure(self, link: "SimulatedLink", failure: Failure) -> None:
        """The peer has reported its own failure, which the engine gets as an error and not as a message."""

    def told(self, life: "Life", event: str, facts: Mapping[str, Any]) -> None:
        """An engine or a daemon tells its observer."""

    def begins(self, node: "Node") -> None:
        """A process of this node begins, or goes on with what was done to it already."""

    def dies(self, node: "Node", *, power: bool) -> None:
        """Its process is killed, or ends by an error; with `power`, its host has lost power."""

    def calms(self) -> None:
        """From here on everything is well."""


NO_FAULTS = Hooks()
