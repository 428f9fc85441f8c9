"""Faults in words, for people: short enough for a label, and different for different faults."""

from enum import Enum

import attrs

from migrate.faults.plan import (
    ACTIONS,
    Action,
    AtByte,
    AtMessage,
    AtTake,
    AtTime,
    AtWrite,
    Fault,
    InPhase,
    InRound,
    Moment,
    Trigger,
    name_of,
)


def trigger_words(when: Trigger) -> str:
    """`before Ready 1, target`: what has to happen, the how many-th time, on which side."""
    match when:
        case AtMessage(message=message, side=side, number=number, moment=Moment.RECEIVED, stream=stream):
            return f"{message} {number} received by {side.peer}{stream_words(stream)}"
        case AtMessage(message=message, side=side, number=number, moment=moment, stream=stream):
            return f"{moment} {message} {number}, {side}{stream_words(stream)}"
        case AtWrite(side=side, number=number, moment=moment):
            return f"{moment} write {number}, {side}"
        case AtTake(side=side, number=number, moment=moment):
            return f"{moment} taking the register {number}, {side}"
        case InPhase(phase=phase, side=side, number=number):
            return f"{side} enters {phase}" + ("" if number == 1 else f" ({number})")
        case AtByte(side=side, byte=byte, stream=stream):
            return f"byte {byte:,}, {side}{stream_words(stream)}"
        case InRound(round=number):
            return f"RAM round {number} begins"
        case AtTime(seconds=seconds):
            return f"after {seconds:g} s"


def stream_words(stream: int) -> str:
    return f", stream {stream}" if stream else ""


def action_words(do: Action) -> str:
    """`kill source, restart_s never`: its name in plans, the side, and what differs from the defaults."""
    side, rest = "", []
    for field in attrs.fields(type(do)):
        value = getattr(do, field.name)
        if field.name == "side":
            side = f" {value}"
        elif value != field.default:
            rest.append(f"{field.name} {_value(value)}")
    return ", ".join([name_of(do, ACTIONS) + side, *rest])


def fault_words(fault: Fault) -> str:
    return f"{action_words(fault.do)} – {trigger_words(fault.when)}"


def side_of(fault: Fault) -> str:
    """The side to which it is done; "world" for what concerns the link."""
    side = getattr(fault.do, "side", None)
    return "world" if side is None else str(side.value)


def _value(value: object) -> str:
    match value:
        case None:
            return "never"
        case Enum():
            return str(value.value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)
