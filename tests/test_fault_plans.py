"""Fault plans as values and as TOML: what is written can be read, and what means nothing is refused with one reason."""

import attrs
import pytest

from migrate.faults.explore import random_plan
from migrate.faults.plan import (
    ACTIONS,
    Action,
    AtByte,
    AtMessage,
    AtTake,
    AtTime,
    AtWrite,
    Fault,
    FlipBit,
    InPhase,
    InRound,
    Kill,
    Lie,
    Moment,
    Plan,
    PlanError,
    Replay,
    Trigger,
    Untruth,
)
from migrate.faults.toml import read_plan, write_plan
from migrate.faults.words import trigger_words
from migrate.protocol.messages import Role

TRIGGERS: list[Trigger] = [
    AtMessage(message="Ready", side=Role.TARGET, number=2, moment=Moment.RECEIVED),
    AtMessage(message="Commit", side=Role.SOURCE),
    AtMessage(message="RamPages", side=Role.SOURCE, stream=3),
    AtByte(side=Role.SOURCE, byte=70_000),
    AtByte(side=Role.TARGET, byte=7, stream=1),
    AtTake(side=Role.TARGET, moment=Moment.AFTER),
    InPhase(phase="last ram", side=Role.SOURCE),
    AtWrite(side=Role.TARGET, number=3, moment=Moment.AFTER),
    InRound(round=2),
    AtTime(seconds=0.0025),
]


def specimen(name: str) -> Fault:
    """A fault with that action, at a place where every action may strike."""
    kind = ACTIONS[name]
    sided = "side" in {field.name for field in attrs.fields(kind)}
    action = kind(side=Role.TARGET) if sided else kind()  # type: ignore[call-arg]  # those that have a side need one
    return Fault(when=AtMessage(message="Prepare", side=Role.SOURCE), do=action)


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_comes_back_from_toml(name: str) -> None:
    plan = Plan(faults=(specimen(name),), seed=7)
    assert read_plan(write_plan(plan)) == plan


@pytest.mark.parametrize("trigger", TRIGGERS, ids=trigger_words)
def test_every_trigger_comes_back_from_toml(trigger: Trigger) -> None:
    fault = Fault(when=trigger, do=Kill(side=Role.SOURCE, restart_s=None))
    plan = Plan(faults=(fault,), spec='a "b".json', fence=True, streams=4)
    assert read_plan(write_plan(plan)) == plan


def test_random_plans_come_back_from_toml_and_follow_from_their_seed() -> None:
    for seed in range(200):
        plan = random_plan(seed)
        assert read_plan(write_plan(plan)) == plan == random_plan(seed)


def test_a_plan_as_a_person_writes_it_leaves_defaults_out() -> None:
    text = """
    [[fault]]
    when = {at = "message", message = "Ready", side = "target"}
    do = {action = "kill", side = "target", restart_s = "never"}
    """
    assert read_plan(text) == Plan(
        faults=(
            Fault(
                when=AtMessage(message="Ready", side=Role.TARGET, number=1, moment=Moment.BEFORE),
                do=Kill(side=Role.TARGET, restart_s=None),
            ),
        )
    )


WHEN = 'when = {at = "message", message = "Ready", side = "target"}'
DO = 'do = {action = "reset"}'
BAD = [
    ("[[fault", "this is no TOML"),
    ("faults = []", "there is no key 'faults'; known here are seed, spec, fence, streams, fault"),
    ('seed = "x"', "seed is 'x'; it must be an integer"),
    ("fence = 1", "fence is 1; it must be true or false"),
    ('streams = "2"', "streams is '2'; it must be an integer"),
    ("streams = 0", "streams is 0; it must be 1 to 16"),
    ("streams = 17", "streams is 17; it must be 1 to 16"),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Ready", side = "target", stream = 1}}\n{DO}',
        "fault 1, when: stream is 1, where no Ready is said; of a stream, message must be one of Attach, Failure, "
        "RamBatch, RamPages, RoundEnd",
    ),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Attach", side = "target"}}\n{DO}',
        "fault 1, when: stream is 0; Attach is said on those from 1 on",
    ),
    (
        f'[[fault]]\nwhen = {{at = "byte", byte = 3, side = "target", stream = 17}}\n{DO}',
        "fault 1, when: stream is 17; it must be 0 to 16",
    ),
    (
        f'[[fault]]\nwhen = {{at = "phase", phase = "ram", side = "target", stream = 1}}\n{DO}',
        "fault 1, when: there is no key 'stream'; known here are phase, side, number",
    ),
    ("spec = 1", "spec is 1; it must be the path of a file"),
    ("fault = 1", "fault is no list of tables; write [[fault]]"),
    ("fault = [1]", "fault 1 is no table; write [[fault]], then when = {…} and do = {…}"),
    (f"[[fault]]\n{WHEN}", "fault 1: do must be a table such as {action = …}"),
    (f"[[fault]]\n{WHEN}\n{DO}\nthen = 1", "fault 1: there is no key 'then'; known here are when, do"),
    (f"[[fault]]\nwhen = {{}}\n{DO}", "fault 1, when: at is missing; it must be one of message, byte, phase"),
    (f'[[fault]]\nwhen = {{at = "noon"}}\n{DO}', "fault 1, when: at is 'noon'; it must be one of message, byte"),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Redy", side = "target"}}\n{DO}',
        "fault 1, when: message is 'Redy'; it must be one of Abandon, Accept",
    ),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Ready", side = "source"}}\n{DO}',
        "fault 1, when: side is source; Ready is sent by the target",
    ),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Ready", side = "both"}}\n{DO}',
        "fault 1, when: side is 'both'; it must be one of source, target",
    ),
    (
        f'[[fault]]\nwhen = {{at = "message", message = "Ready"}}\n{DO}',
        "fault 1, when: side is missing",
    ),
    (
        f'[[fault]]\nwhen = {{at = "write", side = "source", moment = "received"}}\n{DO}',
        "fault 1, when: moment is 'received'; of a write it must be 'before' or 'after'",
    ),
    (
        f'[[fault]]\nwhen = {{at = "write", side = "source", number = 0}}\n{DO}',
        "fault 1, when: number is 0; it must be at least 1",
    ),
    (
        f'[[fault]]\nwhen = {{at = "phase", side = "source", phase = "lunch"}}\n{DO}',
        "fault 1, when: phase is 'lunch'; it must be one of hello, preamble",
    ),
    (f'[[fault]]\n{WHEN}\ndo = {{action = "explode"}}', "fault 1, do: action is 'explode'; it must be one of cut"),
    (
        f'[[fault]]\n{WHEN}\ndo = {{action = "cut", seconds = 1}}',
        "fault 1, do: there is no key 'seconds'; known here are for_s",
    ),
    (f'[[fault]]\n{WHEN}\ndo = {{action = "cut", for_s = "1"}}', "fault 1, do: for_s is '1'; it must be a number"),
    (f'[[fault]]\n{WHEN}\ndo = {{action = "cut", for_s = -1}}', "fault 1, do: for_s is -1.0; it must be at least 0"),
    (
        f'[[fault]]\n{WHEN}\ndo = {{action = "kill", side = "source", restart_s = true}}',
        'fault 1, do: restart_s is True; it must be a number or "never"',
    ),
    (
        f'[[fault]]\nwhen = {{at = "take", side = "source", moment = "received"}}\n{DO}',
        "fault 1, when: moment is 'received'; of a take it must be 'before' or 'after'",
    ),
    (
        '[[fault]]\nwhen = {at = "time", seconds = 1}\ndo = {action = "truncate"}',
        "fault 1: do is 'truncate', which needs data: when must be a message, before it is sent, or a byte",
    ),
]


@pytest.mark.parametrize(("text", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_a_plan_that_means_nothing_is_refused_with_its_key_and_what_could_stand_there(text: str, problem: str) -> None:
    with pytest.raises(PlanError) as refused:
        read_plan(text)
    assert str(refused.value).startswith(problem)


ON_STREAM_2 = Plan(faults=(Fault(when=AtByte(side=Role.SOURCE, byte=1, stream=2), do=FlipBit()),))


@pytest.mark.parametrize(
    ("streams", "problem"),
    [
        (1, "fault 1: stream is 2, and there is none; say streams = 3 in the plan, or --streams 3"),
        (2, "fault 1: stream is 2, and the last is stream 1; say streams = 3 in the plan, or --streams 3"),
    ],
)
def test_a_plan_strikes_no_stream_that_there_is_not(streams: int, problem: str) -> None:
    for plan, asked in ((ON_STREAM_2, streams), (attrs.evolve(ON_STREAM_2, streams=streams), 1)):
        with pytest.raises(PlanError) as refused:
            plan.over(asked)
        assert str(refused.value) == problem


@pytest.mark.parametrize(("said", "asked", "over"), [(1, 3, 3), (4, 1, 4), (3, 5, 5)])
def test_a_plan_is_for_as_many_connections_as_it_says_or_more(said: int, asked: int, over: int) -> None:
    assert attrs.evolve(ON_STREAM_2, streams=said).over(asked).streams == over


def test_data_can_be_changed_only_where_there_is_some() -> None:
    with pytest.raises(PlanError, match="needs data"):
        Fault(when=AtMessage(message="Ready", side=Role.TARGET, moment=Moment.AFTER), do=FlipBit())


def test_a_lie_is_refused_where_it_cannot_be_said() -> None:
    with pytest.raises(
        PlanError, match="what is 'wrong-count', which Prepare cannot say; it must be one of wrong-mess"
    ):
        Fault(when=AtMessage(message="Prepare", side=Role.SOURCE), do=Lie(what=Untruth.WRONG_COUNT))


@pytest.mark.parametrize("action", [Replay(), Lie()], ids=["replay", "lie"])
def test_what_stands_in_for_a_message_needs_one_that_has_not_left(action: Action) -> None:
    for trigger in (
        AtByte(side=Role.SOURCE, byte=7),
        AtMessage(message="Ready", side=Role.TARGET, moment=Moment.AFTER),
    ):
        with pytest.raises(PlanError, match="when must be a message, before it is sent"):
            Fault(when=trigger, do=action)
