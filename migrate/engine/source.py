"""The source's side of a migration.

    hello → preamble → verdict → RAM rounds, guest running → pre-flight → pause → last RAM, time, devices, server state,
    all in one flight → prepare → ready → commit → owned

What the pre-flight takes tells how long the guest would be away: it is made after the first round too (`policy`).

Until the record `C(n)` is written, whatever goes wrong is undone in this order: pages that were sent are dirty again,
the guest runs again, the peer is told, and only then does the failure leave `run_source` (Propolis #811: a retry raced
the resume).  After `C(n)` nothing is undone: the target decides, and as long as its decision is unknown the machine
stays paused (`HandoffInDoubt`).

Before the pause every device is exported without sending, so that state which cannot be represented is found while the
guest still runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final

import attrs

from migrate.engine.attempt import Attempt, Precopy
from migrate.engine.handoff import (
    Holding,
    Record,
    Ruling,
    Say,
    on_declined,
    on_owned,
    on_ready,
    on_unknown,
    rolling_back,
)
from migrate.engine.image import PauseImage
from migrate.engine.negotiation import obstacles_of, preamble_of, why_not_newer
from migrate.engine.ownership import Hands, Ownership, StorageTaken
from migrate.engine.payload_choice import Common, NoCommonPayload, chooser, common_versions, not_representable
from migrate.engine.policy import (
    CAUTION,
    Course,
    Decision,
    Outlook,
    PrecopyPolicy,
    SwitchoverCost,
    first_export_ns,
    not_converging,
)
from migrate.engine.ports import Clock, Fence, Journal, Link, Observer, Pace, Ram, RunningGuest
from migrate.engine.ram import MappedRam
from migrate.engine.rounds import NS_PER_MS, finite
from migrate.errors import (
    DeviceStateError,
    HandoffInDoubt,
    MigrationError,
    NotConverging,
    PeerFailed,
    Refused,
    RemoteProtocolError,
    StateRefused,
    StorageUnreachable,
)
from migrate.payloads import PayloadError, encode_payload
from migrate.plain import fields_of, quote
from migrate.protocol.frames import encode_frame
from migrate.protocol.messages import (
    PROTOCOL_VERSIONS,
    Accept,
    Commit,
    Declined,
    DevicesEnd,
    DeviceState,
    Failure,
    Hello,
    HelloFor,
    Inquire,
    Message,
    Owned,
    Paused,
    Payload,
    Prepare,
    Refuse,
    Released,
    Role,
    RoundStored,
    ServerState,
    Settle,
    Standing,
    TimeOfDay,
    Transcript,
    Unknown,
    Welcome,
)
from migrate.reasons import Reason
from migrate.releases import Release
from sim_vmm.devices.errors import DeviceStateError as MachineDeviceError
from sim_vmm.devices.errors import StateNotRepresentable
from sim_vmm.machine import DeviceState as ExportedState

MESSAGE_MAX: Final = 4096
SLOWDOWN_AFTER_NS: Final = 50_000_000
"""What a guest does in a shorter time says little about what it would go on doing: ten steps of a daemon."""


def unknown() -> None:
    """Nobody can say."""


@attrs.frozen(kw_only=True)
class SourcePorts:
    link: Link
    guest: RunningGuest
    journal: Journal
    clock: Clock
    observer: Observer
    fence: Fence | None = None
    ram: Ram = attrs.field(factory=MappedRam)
    way_ns: Callable[[], int | None] = unknown
    """What the network says that the way to the peer and back takes."""


@attrs.frozen(kw_only=True)
class SourceSettings:
    """`bandwidth` in bytes per second, or None for no cap."""

    node: str
    machine_name: str
    release: Release
    policy: PrecopyPolicy = attrs.field(factory=PrecopyPolicy)
    bandwidth: float | None = None


class Served(StrEnum):
    """What came of a connection that did not fail."""

    HANDED_OVER = "handed over"
    """A target owns the machine: nothing is left to be done here."""
    NOTHING_CHANGED = "nothing changed"
    """A node was told about an earlier handoff; who runs the machine is as it was."""


async def run_source(ports: SourcePorts, settings: SourceSettings, attempt: Attempt) -> Served:
    """Serve one connection of a target: migrate the machine away, or settle an earlier handoff.

    `attempt` is filled in whatever happens.

    Raises:
        MigrationError: the machine stays here, and runs again already.
        HandoffInDoubt: the machine was given away, and whether the target has it is unknown; it must not run here.
        StorageTaken: the machine's storage is another's; it is stopped here for good.
    """
    return await _Source(ports, settings, attempt).run()


def no_common_version(theirs: Sequence[int]) -> Reason:
    known, ours = (", ".join(map(str, versions)) for versions in (theirs, PROTOCOL_VERSIONS))
    return Reason(component="protocol", field="version", have=known, need=f"one of {ours}")


class _Source:
    def __init__(self, ports: SourcePorts, settings: SourceSettings, attempt: Attempt) -> None:
        self.link, self.guest, self.journal = ports.link, ports.guest, ports.journal
        self.observer = ports.observer
        self.settings, self.attempt = settings, attempt
        self.machine = ports.guest.machine
        self.target = ""
        self.rehearsed: dict[str, tuple[ExportedState, DeviceState]] = {}
        self.exports_ns: list[int] = []
        self.clock = ports.clock
        self.ports = ports
        self.ownership = Ownership(
            node=settings.node,
            machine=self.machine.birth.vm_id,
            journal=ports.journal,
            fence=ports.fence,
            observer=ports.observer,
            hands=Hands(run=self.run_again, drop=self.forget_machine, stop=self.guest.stop),
            alarms=attempt.warnings,
            timing=attempt.part,
        )

    def enter(self, phase: str) -> None:
        self.attempt.phase = phase
        self.observer.tell("phase", phase=phase)

    async def run(self) -> Served:
        self.enter("hello")
        first = await self.link.receive()
        if isinstance(first, Settle | Inquire):
            return await self.settle(first)
        assert isinstance(first, Hello | HelloFor), "the table allows nothing else"
        self.target = first.node
        await self.welcome(first)  # nothing to undo yet; and a machine that was given away must not be resumed
        try:
            accepted = await self.negotiate()
            choice = common_versions(self.settings.release, accepted.imports)
            with self.throttle_lifted_afterwards():
                generation = await self.copy_while_running(choice)
                await self.pause()
            image = await self.copy_the_rest(choice, generation)
            self.link.forbid_cancelling()
        except Exception as error:
            await self.roll_back(error)
            raise
        await self.give_away(generation, image)
        return Served.HANDED_OVER

    async def welcome(self, hello: Hello | HelloFor) -> None:
        """Pick the newest common protocol version, and refuse while an earlier handoff is in doubt."""
        reasons = []
        common = [version for version in PROTOCOL_VERSIONS if version in hello.protocol_versions]
        if not common:
            reasons.append(no_common_version(hello.protocol_versions))
        record = self.journal.record
        if record.holding is not Holding.OWNER:
            reasons.append(
                Reason(
                    component="machine",
                    field="ownership",
                    have=f"given away in generation {record.generation}, with no answer from the target yet",
                    need="that target to come back",
                )
            )
        if reasons:
            await self.link.send(Refuse(reasons=tuple(reasons)))
            raise Refused(reasons, Role.SOURCE)
        await self.link.send(
            Welcome(protocol_version=common[0], node=self.settings.node, release=self.settings.release.name)
        )
        self.target_release = hello.release
        self.ram = self.ports.ram.outgoing(
            self.machine, self.link, self.clock, self.observer, self.settings.bandwidth, common[0]
        )

    async def negotiate(self) -> Accept:
        self.enter("preamble")
        preamble = preamble_of(self.machine, self.settings.release, self.settings.machine_name)
        sent_ns = self.clock.monotonic_ns()
        await self.link.send(preamble)
        self.enter("verdict")
        answer = await self.link.receive()
        self.attempt.exchanged("preamble", sent_ns=sent_ns, heard_ns=self.clock.monotonic_ns())
        if isinstance(answer, Refuse):
            raise Refused(answer.reasons, Role.TARGET)
        assert isinstance(answer, Accept), "the table allows nothing else"
        if preamble.obstacles:
            raise Refused(preamble.obstacles, Role.SOURCE)
        if answer.spec_version not in {variant.version for variant in preamble.variants}:
            raise RemoteProtocolError(f"the target accepted spec version {answer.spec_version}, which was not offered")
        self.attempt.spec_version = answer.spec_version
        self.attempt.why_not_newer = why_not_newer(
            preamble.withheld, preamble.variants, answer.spec_version, self.target_release
        )
        self.observer.tell("accepted", spec_version=answer.spec_version)
        return answer

    async def copy_while_running(self, choice: Common) -> int:
        """Rounds until the policy says pause: returns the generation in which the machine is to be given away.

        Raises:
            NotConverging: the guest dirties memory faster than it is copied, and stays here.
        """
        self.enter("ram")
        began_ns, began = self.clock.monotonic_ns(), self.guest.pace
        policy, throttle, cost, generation = self.settings.policy, 0.0, SwitchoverCost(), None
        while True:
            await self.copy_round(throttle)
            is_known = generation is not None
            if generation is None and len(self.attempt.rounds) >= policy.rounds_min:
                cost, generation = await self.find_out_the_cost(choice)
            course, outlook = self.consider(began_ns, cost)
            if is_known and outlook.floor_ms > policy.downtime_limit_ms / CAUTION:  # it may have been an accident
                cost, generation = await self.find_out_the_cost(choice)
                course, outlook = self.consider(began_ns, cost)
            elif is_known and course.decision is Decision.PAUSE:  # the guest has been at its devices since
                cost = self.export_again(choice, cost)
                course, outlook = self.consider(began_ns, cost)
            self.tell_estimate(course, outlook)
            if course.decision is Decision.GIVE_UP:
                raise NotConverging(not_converging(policy, course, outlook, len(self.attempt.rounds)))
            if course.decision is Decision.PAUSE and generation is not None:
                self.expect(course, outlook, began)
                await self.clock.sleep(0)  # the guest was kept waiting by the exports, and would be away so much longer
                return generation
            if course.throttle != throttle:
                throttle = course.throttle
                self.guest.throttle(throttle)
                self.observer.tell("throttle", share=throttle, message=f"the guest is slowed down by {throttle:.0%}")
            if self.attempt.phase != "ram":
                self.enter("ram")

    def consider(self, began_ns: int, cost: SwitchoverCost) -> tuple[Course, Outlook]:
        rounds, dirty_pages = self.attempt.rounds, self.machine.memory.dirty.count
        elapsed_ns = self.clock.monotonic_ns() - began_ns
        course = self.settings.policy.decide(rounds, dirty_pages, elapsed_ns, cost)
        return course, Outlook.after(rounds, dirty_pages, cost, course.throttle)

    async def find_out_the_cost(self, choice: Common) -> tuple[SwitchoverCost, int]:
        """What handing over costs with no RAM left, by doing what can be done of it while the guest runs.

        The write of the journal that is timed gives a generation, for the handover.
        """
        cost = self.export_again(choice, SwitchoverCost())
        start_ns = self.clock.monotonic_ns()
        generation = await self.journal.new_generation()
        cost = attrs.evolve(cost, journal_ns=self.clock.monotonic_ns() - start_ns)
        return attrs.evolve(cost, register_ns=await self.look_at_register()), generation

    async def look_at_register(self) -> int:
        """How long that takes; 0 if there is none, or it cannot be reached: that is for the target to find out."""
        if self.ports.fence is None:
            return 0
        start_ns = self.clock.monotonic_ns()
        try:
            await self.ports.fence.read()
        except StorageUnreachable as error:
            self.attempt.warnings.append(f"the predicted downtime leaves out the storage's register: {error}")
            return 0
        return self.clock.monotonic_ns() - start_ns

    def export_again(self, choice: Common, cost: SwitchoverCost) -> SwitchoverCost:
        start_ns = self.clock.monotonic_ns()
        state_bytes = self.preflight(choice)
        self.exports_ns.append(self.clock.monotonic_ns() - start_ns)
        export_ns = first_export_ns(self.exports_ns)
        return attrs.evolve(cost, state_bytes=state_bytes, export_ns=export_ns, way_ns=self.ports.way_ns())

    def tell_estimate(self, course: Course, outlook: Outlook) -> None:
        rounds = self.attempt.rounds
        self.observer.tell(
            "estimate",
            round=rounds[-1].number,
            **outlook.as_json(),
            remaining_ms=finite(self.settings.policy.remaining_ms(outlook, rounds)),
            throttle=course.throttle,
            decision=course.decision.value,
            why=course.why,
        )

    def expect(self, course: Course, outlook: Outlook, began: Pace) -> None:
        """Note what is expected of the switchover, before it begins."""
        elapsed_ms = (self.clock.monotonic_ns() - self.attempt.started_ns) / NS_PER_MS
        self.attempt.precopy = Precopy(
            downtime_ms=outlook.downtime_ms,
            total_ms=elapsed_ms + outlook.downtime_ms,
            forced=course.forced,
            slowdown=slowdown(began, self.guest.pace),
        )
        limit_ms = self.settings.policy.downtime_limit_ms
        if outlook.downtime_ms > limit_ms:
            why = "the switchover is forced" if course.forced else "handing over alone takes longer"
            self.attempt.warnings.append(
                f"the limit of {limit_ms:g} ms was not to be kept ({why}): {outlook.downtime_ms:.1f} ms were expected"
            )

    @contextmanager
    def throttle_lifted_afterwards(self) -> Iterator[None]:
        """Whatever happens inside, the guest goes on at full speed, wherever it goes on."""
        try:
            yield
        finally:
            self.guest.throttle(0.0)

    async def pause(self) -> None:
        self.enter("pause")
        with self.attempt.step("pause"):
            await self.guest.pause()
        self.attempt.stopped_ns = self.guest.pace.last_ns

    async def copy_round(self, throttle: float) -> None:
        """One round while the guest runs, and the target's receipt for it."""
        round_ = await self.ram.send_round()
        sent_ns = self.clock.monotonic_ns()
        stored = await self.link.receive()
        assert isinstance(stored, RoundStored), "the table allows nothing else"
        if stored.round != round_.number:
            raise RemoteProtocolError(f"a receipt for round {stored.round} after round {round_.number}")
        round_ = attrs.evolve(round_, receipt_ns=self.clock.monotonic_ns() - sent_ns, throttle=throttle)
        self.attempt.rounds.append(round_)
        self.machine.memory.dirty.acknowledge()
        self.observer.tell("round", **round_.as_json())

    def preflight(self, choice: Common) -> int:
        """Export everything as if it were sent, while the guest still runs; returns how many bytes it is.

        Raises:
            StateRefused: a state that the target cannot take: it has come about since the preamble.
            DeviceStateError: a state that does not fit a frame.
        """
        self.enter("pre-flight")
        reasons = (*obstacles_of(self.machine), *not_representable(self.machine, choice))
        if reasons:
            raise StateRefused(reasons, Role.SOURCE)
        with _device_errors():
            states = self.machine.preflight(chooser(choice))
            self.rehearsed = {state.key: (state, self.message_of(state)) for state in states}
            size = sum(len(encode_frame(message)) for _, message in self.rehearsed.values())
        console = self.machine.console.export()
        return size + len(console.beginning) + len(console.rolling)

    async def copy_the_rest(self, choice: Common, generation: int) -> bytes | None:
        """The blackout, up to the target's promise that it holds everything: returns the image, if it is to be kept.

        The guest is paused.
        """
        attempt, link = self.attempt, self.link
        await link.send(Paused())
        self.enter("last ram")
        with attempt.step("last ram"):
            attempt.rounds.append(await self.ram.send_round())
        self.enter("time data")
        with attempt.step("time data"):
            time = TimeOfDay(**fields_of(self.machine.clock.export()))
            await link.send(time)
        self.enter("devices")
        with attempt.step("devices"):
            devices = await self.send_devices(choice)
        self.enter("server state")
        with attempt.step("server state"):
            server = ServerState(**fields_of(self.machine.console.export()))
            await link.send(server)
        self.enter("handoff")
        with attempt.step("ready"):
            await link.send(Transcript(digest=link.transcript))
            sent_ns = self.clock.monotonic_ns()
            await link.send(Prepare(generation=generation))
            image = None
            if self.journal.keeps_images:  # made now, while the target works
                image = PauseImage(time=time, devices=devices, server=server).encode()
            ready = await link.receive()
            attempt.exchanged("ready", sent_ns=sent_ns, heard_ns=self.clock.monotonic_ns())
        if getattr(ready, "generation", None) != generation:
            raise RemoteProtocolError(f"{ready} does not answer generation {generation}")
        assert self.machine.memory.dirty.count == 0, "a paused machine dirtied memory after its last pages were sent"
        return image

    async def send_devices(self, choice: Common) -> tuple[DeviceState, ...]:
        with _device_errors():
            try:
                messages = tuple(self.exported(choice))
            except (StateNotRepresentable, NoCommonPayload) as error:  # what the guest did since the pre-flight
                reasons = tuple(not_representable(self.machine, choice))
                raise StateRefused(reasons, Role.SOURCE) from error
        for message in messages:
            await self.link.send(message)
            self.attempt.payloads[message.device] = {payload.kind: payload.version for payload in message.payloads}
        await self.link.send(DevicesEnd(devices=len(messages)))
        return messages

    def exported(self, choice: Common) -> Iterator[DeviceState]:
        """What says the state of each device; how long each took is noted."""
        began_ns = self.clock.monotonic_ns()
        for state in self.machine.exports(chooser(choice)):
            yield self.message_of(state)
            ended_ns = self.clock.monotonic_ns()
            self.attempt.devices[state.key] = ended_ns - began_ns
            began_ns = ended_ns

    def message_of(self, state: ExportedState) -> DeviceState:
        """As `device_message`; of a state that is still what it was in the pre-flight, the message made there."""
        before, message = self.rehearsed.get(state.key, (None, None))
        return message if message is not None and before == state else device_message(state)

    async def give_away(self, generation: int, image: bytes | None) -> None:
        """The point of no return, and what the target makes of it.

        Raises:
            MigrationError: the target declined for good, and the machine runs here again.
            HandoffInDoubt: no answer.
        """
        record = self.journal.record
        highest = self.journal.highest
        with self.attempt.step("commit"):
            ruling = on_ready(record, generation, self.target, preparing=generation, highest=highest)
            try:
                await self.ownership.carry_out(ruling, self.link, image)
                self.attempt.committed = True
                answer = await self.link.receive()
            except MigrationError as error:
                if self.journal.record == record:  # it could not even be noted
                    await self.roll_back(error)
                    raise
                self.attempt.committed = True
                raise HandoffInDoubt(
                    f"the machine was given away in generation {generation}, and then the link failed ({error}); it "
                    "stays paused here until the target comes back"
                ) from error
        await self.conclude(answer, generation)

    async def settle(self, asked: Settle | Inquire) -> Served:
        """A target comes back after a lost connection or a restart; the journal decides what it is told."""
        self.enter("handoff")
        if isinstance(asked, Inquire):
            is_ours = asked.machine == self.machine.birth.vm_id.bytes and asked.source == self.settings.node
            whom, here = f"node {quote(asked.source)} ", f" of node {quote(self.settings.node)}"
            name, standing, self.target = asked.name, asked.standing, asked.node
        else:
            is_ours = asked.machine == self.settings.machine_name
            whom = here = ""
            name, standing = asked.machine, Standing.OWNS if asked.owned else Standing.HOLDS
        if not is_ours:  # any answer about ours could end theirs, or release ours
            stranger = RemoteProtocolError(
                f"the target asks {whom}about machine {quote(name)}; here is {quote(self.settings.machine_name)}{here}"
            )
            await tell_failure(self.link, self.attempt.phase, stranger)
            raise stranger
        before = self.journal.record
        ruling = self.answer_to(standing, asked.generation)
        answer = next((effect.message for effect in ruling if isinstance(effect, Say)), None)
        if isinstance(answer, Commit):
            self.link.forbid_cancelling()
            try:
                await self.ownership.carry_out(ruling, self.link)
                reply = await self.link.receive()
            except MigrationError as error:
                raise HandoffInDoubt(f"the link failed again while settling generation {asked.generation}") from error
            await self.conclude(reply, asked.generation)
            return Served.HANDED_OVER
        await self.do_all(ruling)
        return self.settled(before, answer, asked.generation)

    def answer_to(self, standing: Standing, generation: int) -> Ruling:
        record = self.journal.record
        match standing:
            case Standing.HOLDS:
                highest = self.journal.highest
                return on_ready(record, generation, self.target, preparing=None, highest=highest)
            case Standing.OWNS:
                return on_owned(record, generation, self.target)
            case Standing.PASSED_ON:
                return on_owned(record, generation, self.target, runs=False)
            case Standing.DECLINED:
                return on_declined(record, generation, self.target)

    def settled(self, before: Record, answer: Message | None, generation: int) -> Served:
        """What an answer that ends the conversation means for the machine here."""
        now = self.journal.record
        if isinstance(answer, Released):
            if before.holding is Holding.COMMITTED and now.holding is Holding.OWNER:
                raise self.declined(generation)
            is_over = now.holding is Holding.NOT_OWNER
            return Served.HANDED_OVER if is_over else Served.NOTHING_CHANGED
        raise Refused(
            [
                Reason(
                    component="machine",
                    field="generation",
                    have=f"{generation}, held by the target",
                    need=f"the one in the journal here: {now}",
                )
            ],
            Role.SOURCE,
        )

    async def conclude(self, answer: Any, generation: int) -> None:
        """The target's choice: `O(n)` there is `N(n)` here, a `Declined` gives the machine back."""
        if getattr(answer, "generation", None) != generation:
            raise HandoffInDoubt(f"{answer} does not answer generation {generation}")
        record = self.journal.record
        if isinstance(answer, Owned):
            await self.do_all(on_owned(record, generation, self.target))
        elif isinstance(answer, Declined):
            await self.do_all(on_declined(record, generation, self.target))
            if self.journal.record.holding is Holding.OWNER:
                raise self.declined(generation)
        else:
            assert isinstance(answer, Unknown), "the table allows nothing else"
            await self.do_all(on_unknown(record, generation, self.target))
        if self.journal.record.holding is Holding.COMMITTED:
            raise HandoffInDoubt(
                f"the target answers {answer}, which says nothing of who has generation {generation}; the machine "
                "stays paused here"
            )

    def declined(self, generation: int) -> PeerFailed:
        return PeerFailed("target", "handoff", "Declined", f"it will not run generation {generation}")

    async def do_all(self, ruling: Ruling) -> None:
        """Carry out what ends in a last acknowledgement: if only that is lost, the target will ask again.

        Raises:
            HandoffInDoubt: the target's choice could not be noted, so that it is as if it had not been heard.
            StorageTaken: the machine is over here.
        """
        try:
            await self.ownership.carry_out(ruling, self.link)
        except StorageTaken:
            raise
        except MigrationError as error:
            record = self.journal.record
            if record.holding is Holding.COMMITTED:
                raise HandoffInDoubt(
                    f"the target has answered, and that could not be noted ({error}); the machine stays paused here "
                    "until the target asks again"
                ) from error
            self.attempt.warnings.append(f"the last acknowledgement was lost: {error}")

    async def run_again(self, image_is_good: bool) -> None:
        """The machine is ours again, and its pages are to be sent again by the next attempt."""
        if image_is_good:
            self.machine.memory.dirty.restore()
            await self.guest.resume()
        else:
            await self.guest.start_over()
        self.observer.tell("rolled back", phase=self.attempt.phase)

    async def forget_machine(self) -> None:
        self.machine.memory.dirty.settle()
        self.observer.tell("handed over", generation=self.journal.record.generation)

    async def roll_back(self, error: Exception) -> None:
        """Undo an attempt that came to nothing: dirty pages, then the guest, then a word to the peer."""
        try:
            await self.ownership.carry_out(rolling_back(self.journal.record))
        finally:
            knows_already = isinstance(error, Refused | PeerFailed) and not isinstance(error, StateRefused)
            if isinstance(error, MigrationError) and not knows_already:
                await tell_failure(self.link, self.attempt.phase, error)


def device_message(state: ExportedState) -> DeviceState:
    payloads = tuple(
        Payload(kind=payload.SCHEMA.kind, version=payload.SCHEMA.version, data=encode_payload(payload))
        for payload in state.payloads
    )
    return DeviceState(device=state.key, payloads=payloads)


def slowdown(began: Pace, ended: Pace) -> float | None:
    """The share of its work that a guest did not get done between the two, by what it did before."""
    before, during = began.running_ns, ended.running_ns - began.running_ns
    if before < SLOWDOWN_AFTER_NS or not during or not began.work:
        return None
    return 1 - (ended.work - began.work) / during * before / began.work


async def tell_failure(link: Link, phase: str, error: MigrationError) -> None:
    """Tell the peer that we cannot go on, if it can still be reached."""
    failure = Failure(phase=phase, error=type(error).__name__, message=str(error)[:MESSAGE_MAX])
    try:
        await link.send(failure)
    except MigrationError:
        return  # the link is what failed, or the conversation is over already: the peer will see that by itself


class _device_errors:  # noqa: N801  # a context manager, named as what it handles
    """What a device or a schema objects to becomes a failure of the attempt."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MachineDeviceError | PayloadError | ValueError):
            raise DeviceStateError(str(error)) from error
