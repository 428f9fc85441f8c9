"""What the engines await, and nothing else: a link, RAM on its way, a guest that can be paused, a journal, a clock …

In the daemons these are sockets, trio tasks and the host's clock; a simulation brings its own.  An engine never learns
which world it runs in.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from migrate.engine.handoff import Record
from migrate.engine.rounds import Round
from migrate.protocol.messages import Message, RamContent, RoundEnd
from sim_vmm.birth import Birth
from sim_vmm.fence import Title
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec


class Link(Protocol):
    """The conversation with the peer.  Every method raises a MigrationError if the attempt cannot go on."""

    @property
    def transcript(self) -> int:
        """Stands for everything that was said so far, in both directions."""

    async def send(self, message: Message) -> None:
        """Send a message that is this side's to send.

        Raises:
            LocalProtocolError: it is not our turn to say this; nothing was sent.
            PeerFailed: the peer reported a failure of its own meanwhile.
            TransportLost, DeadlineExpired, MigrationCancelled.
        """

    async def receive(self) -> Message:
        """The peer's next message.

        Raises:
            RemoteProtocolError: the peer broke the protocol.
            PeerFailed: it reported a failure of its own.
            TransportLost, DeadlineExpired, MigrationCancelled.
        """

    async def ready_for_ram(self) -> None:
        """Return when there is room for a batch.  Raises as `send` does."""

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        """Send a batch and the bytes that it announces; `content` may be reused afterwards.

        It may be memory that a guest writes to, if `ready_for_ram` was called right before: what `content` says now is
        on its way, or kept, before anybody else has a turn.
        """

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        """Fill `buffers` with the bytes that follow the batch just received."""

    def forbid_cancelling(self) -> None:
        """From here on the attempt must be brought to its end: nobody may cancel it.

        Raises:
            MigrationCancelled: somebody has done so already, and it had not been noticed.
        """


class OutgoingRam(Protocol):
    """A machine's dirty pages on their way out, round by round."""

    async def send_round(self) -> Round:
        """Send every page that is dirty now, and `RoundEnd` on the link of the conversation.

        What the guest dirties meanwhile can wait.  The receipt is the engine's to await, so `receipt_ns` is 0.

        Raises:
            MigrationError: as the link's methods.
        """


class IncomingRam(Protocol):
    """A machine's pages coming in, round by round."""

    async def receive_round(self) -> RoundEnd | None:
        """The end of the round, once all of it is in the machine's RAM; None if `Paused` came in place of a round.

        The batches of a round may come in any order, and over whatever carries them; `RoundEnd` and `Paused` come on
        the link of the conversation.

        Raises:
            RemoteProtocolError: pages that are not RAM, damaged, of another round, or not as many as it says.
            MigrationError: as the link's methods.
        """

    def mark_received_dirty(self) -> None:
        """All content is dirty on the new host, so that the machine can migrate on (protocol-phases §5)."""


class Ram(Protocol):
    """How guest RAM travels: for real (`migrate.engine.ram`), or reckoned only."""

    def outgoing(
        self,
        machine: Machine,
        link: Link,
        clock: "Clock",
        observer: "Observer",
        bandwidth: float | None,
        protocol_version: int,
    ) -> OutgoingRam:
        """For one attempt of the source; `bandwidth` in bytes per second caps page contents, None does not.

        `protocol_version` is the one that both sides speak.
        """

    def incoming(self, machine: Machine, link: Link) -> IncomingRam:
        """For one attempt of the target, as soon as the machine is ready to receive."""


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    async def sleep(self, seconds: float) -> None:
        """With 0, everybody who is due has a turn before it returns."""


@attrs.frozen(kw_only=True)
class Pace:
    """How far a guest has come: `work` in any unit, in the `running_ns` for which it has been running here.

    `last_ns` is when it last had executed something, by the monotonic clock; None if that is not known.
    """

    work: float
    running_ns: int
    last_ns: int | None = None


class RunningGuest(Protocol):
    """The source's machine and whoever makes its vCPUs run."""

    machine: Machine

    @property
    def pace(self) -> Pace:
        """As of now."""

    def throttle(self, share: float) -> None:
        """Keep the guest's processors asleep for `share` of the time from now on, below 1; 0 lifts that.

        It ends with this process at the latest, and never goes with the machine.
        """

    async def pause(self) -> None:
        """Return when the guest executes no more and its devices are quiet."""

    async def resume(self) -> None:
        """Return when the guest executes, whether or not it did before."""

    async def start_over(self) -> None:
        """Boot the guest again from the machine's disks: `machine` is another one then."""

    async def stop(self) -> None:
        """Return when the guest executes no more, for good."""


class Hypervisor(Protocol):
    """Makes and runs machines on the target."""

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        """A machine for `spec` that shows its guest what `birth` says, not running, its RAM untouched.

        Raises:
            MachineCreationFailed: this host cannot make it.
        """

    async def run(self, machine: Machine) -> None:
        """Let the guest execute; return when it does."""

    async def start_over(self, machine: Machine) -> None:
        """Let the guest boot again, from the machine's disks and with nothing else of `machine`."""

    async def discard(self, machine: Machine) -> None:
        """Tear down a machine that never ran here, or never will again."""


class Journal(Protocol):
    """The durable record of who owns one machine: see `handoff`."""

    @property
    def record(self) -> Record: ...

    @property
    def highest(self) -> int:
        """The highest generation that was ever used here."""

    @property
    def keeps_images(self) -> bool:
        """Whether an image given to `write` would be found again after the death of this process."""

    async def new_generation(self) -> int:
        """A number above all that this machine's ownership ever used, noted before it is returned.

        Raises:
            JournalFailed: it could not be noted.
        """

    async def expect(self, machine: Machine) -> None:
        """`machine` has been filled once while its guest runs on: do now what need not be done in the blackout.

        Raises:
            JournalFailed: its records could not be written either.
        """

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        """Return when `record` is the one that will be found after any crash, `image` with it.

        With `owes_answer` the record's peer must be told of it until `settle_debt`, even if this process dies.  An
        image is forgotten with the next record that stands for none.

        Raises:
            JournalFailed: the old record stands.
        """

    async def settle_debt(self, generation: int, peer: str) -> None:
        """`peer` has noted what it had to be told of `generation`."""


class Journals(Protocol):
    """The journals of a node, one for each machine that it ever had to do with."""

    async def of(self, birth: Birth, name: str) -> Journal:
        """The journal of the machine with that birth; `name` is what its source calls it."""


class Fence(Protocol):
    """The register in the storage that both nodes reach (`sim_vmm.fence`)."""

    @property
    def session(self) -> int:
        """The session in which this node may use the disks; 0 if it may not."""

    async def read(self) -> Title | None:
        """What the register holds.

        Raises:
            StorageUnreachable: nobody can say.
        """

    async def take(self, expected: Title | None, title: Title) -> None:
        """Replace `expected` by `title`, in whose session this node uses the disks from now on.

        Raises:
            TitleMoved: the register holds something else.
            StorageUnreachable: nobody can say, and nothing has changed.
        """


class Observer(Protocol):
    """Is told what happens, in the order in which it happens."""

    def tell(self, event: str, **facts: Any) -> None: ...
