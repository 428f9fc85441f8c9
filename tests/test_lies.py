"""A lying peer: every lie is well framed and untrue, and a migration that meets one fails aloud or is not harmed."""

from collections.abc import Iterator

import pytest

from migrate.errors import RemoteProtocolError
from migrate.faults.explore import Experiment, single_plans
from migrate.faults.injection import Injector
from migrate.faults.lies import UNKNOWN_VERSION, told, ways
from migrate.faults.plan import (
    MESSAGE_NAMES,
    SENDERS,
    UNTRUTHS_OF,
    Lie,
    Plan,
    Untruth,
)
from migrate.protocol import frames
from migrate.protocol.conversation import NEXT
from migrate.protocol.messages import Hello, Message, RamContent, Role
from migrate.simulation.link import SimulatedLink
from migrate.simulation.remembering import remembering
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)


Said = tuple[Role, Message, bytes]


class Listener(Injector):
    """Keeps what is said in an undisturbed migration: who says it, the message, and its bytes."""

    def __init__(self) -> None:
        super().__init__(Plan(faults=()))
        self.said: list[Said] = []

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        self.said.append((link.role, message, data))
        return super().sending(link, message, data)


@pytest.fixture(scope="module")
def conversation() -> list[Said]:
    listener = Listener()
    with EXPERIMENT.world(listener) as world:
        world.run()
    return listener.said


def lies_about(message: Message, role: Role) -> Iterator[tuple[Untruth, int]]:
    name = type(message).__name__
    for what, names in UNTRUTHS_OF.items():
        for way in range(ways(what, name, role) if name in names else 0):
            yield what, way


def test_a_lie_is_another_message_in_a_frame_that_is_whole(conversation: list[Said]) -> None:
    told_in_all = 0
    for role, message, data in conversation:
        for what, way in lies_about(message, role):
            lie = told(what, role, message, data, way)
            assert lie.startswith(frames.PREFACE) is data.startswith(frames.PREFACE)
            lie = lie.removeprefix(frames.PREFACE)
            head, body = lie[: frames.HEADER.size], lie[frames.HEADER.size :]
            told_in_all += 1
            if what is Untruth.OVERSIZE:
                with pytest.raises(RemoteProtocolError, match=r"announces .* at most"):
                    frames.decode_header(head)
                continue
            header = frames.decode_header(head)
            read = frames.decode_body(header, body[: header.length])
            assert read != message
            assert len(body) - header.length == (read.content_bytes if isinstance(read, RamContent) else 0)
            if what in (Untruth.WRONG_MESSAGE, Untruth.NO_EVIDENCE):
                here = {phase for phase, sender, kind in NEXT if (sender, kind) == (role, type(message))}
                legal = [phase for phase in here if (phase, role, type(read)) in NEXT]
                assert bool(legal) is (what is Untruth.NO_EVIDENCE)
    assert told_in_all > 400


def test_every_message_can_be_lied_about_and_a_way_too_many_is_the_first_again() -> None:
    for name in MESSAGE_NAMES:
        for sender in map(Role, SENDERS[name]):
            assert ways(Untruth.WRONG_MESSAGE, name, sender) > 3
    hello = Hello(protocol_versions=(1,), node="rack-7", release="r6")
    data = frames.PREFACE + frames.encode_frame(hello)
    lie = told(Untruth.UNKNOWN_VERSION, Role.TARGET, hello, data, way=7)
    head = lie.removeprefix(frames.PREFACE)[: frames.HEADER.size]
    read = frames.decode_body(frames.decode_header(head), lie[len(frames.PREFACE + head) :])
    assert read == Hello(protocol_versions=(UNKNOWN_VERSION,), node="rack-7", release="r6")


def test_no_lie_is_believed() -> None:
    """Every third way to tell a lie; that somebody complains is a check of what explores, which tries all."""
    with remembering():
        plans = [plan for plan in single_plans(EXPERIMENT) if isinstance(plan.faults[0].do, Lie)]
        for plan in plans[::3]:
            tried = EXPERIMENT.run(plan)
            assert tried.violations == (), plan
            assert tried.fired == 1, plan
    assert len(plans) > 400
