"""Plans as TOML, for people and for files.

    seed = 0
    spec = "machine.json"

    [[fault]]
    when = {at = "message", message = "Ready", side = "target", number = 1, moment = "before"}
    do = {action = "kill", side = "target", restart_s = 1.0}

What has a default may be left out.  `restart_s = "never"` leaves a node dead until all is well.  Everything else is
refused, with the key that is wrong and what could stand there.
"""

import json
import tomllib
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import attrs

from migrate.faults.plan import ACTIONS, TRIGGERS, Action, Fault, Plan, PlanError, Trigger, name_of

NEVER: Final = "never"


def write_plan(plan: Plan) -> str:
    lines = [f"seed = {plan.seed}"]
    if plan.spec:
        lines.append(f"spec = {json.dumps(plan.spec)}")
    if plan.fence:
        lines.append("fence = true")
    if plan.streams > 1:
        lines.append(f"streams = {plan.streams}")
    for fault in plan.faults:
        when = _table("at", name_of(fault.when, TRIGGERS), fault.when)
        lines += ["", "[[fault]]", f"when = {when}", f"do = {_table('action', name_of(fault.do, ACTIONS), fault.do)}"]
    return "\n".join(lines) + "\n"


def _table(key: str, name: str, value: Trigger | Action) -> str:
    fields = attrs.asdict(value, recurse=False)
    if not fields.get("stream", True):
        del fields["stream"]  # the conversation's own connection goes without saying
    return "{" + ", ".join(f"{field} = {_text(content)}" for field, content in {key: name, **fields}.items()) + "}"


def _text(value: object) -> str:
    return repr(value) if isinstance(value, int | float) else f'"{NEVER if value is None else value}"'


def read_plan(text: str) -> Plan:
    """Raises PlanError, which names the first key that is wrong and says what could stand there."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"this is no TOML: {error}") from None
    _refuse_unknown(document, ("seed", "spec", "fence", "streams", "fault"), "")
    faults = document.get("fault", [])
    if not isinstance(faults, list):
        raise PlanError("fault is no list of tables; write [[fault]]")
    seed = document.get("seed", 0)
    if type(seed) is not int:
        raise PlanError(f"seed is {seed!r}; it must be an integer")
    spec = document.get("spec", "")
    if not isinstance(spec, str):
        raise PlanError(f"spec is {spec!r}; it must be the path of a file")
    fence = document.get("fence", False)
    if type(fence) is not bool:
        raise PlanError(f"fence is {fence!r}; it must be true or false")
    streams = document.get("streams", 1)
    if type(streams) is not int:
        raise PlanError(f"streams is {streams!r}; it must be an integer")
    read = tuple(_fault(entry, f"fault {number}") for number, entry in enumerate(faults, 1))
    return Plan(faults=read, seed=seed, spec=spec, fence=fence, streams=streams)


def read_plan_file(path: Path) -> Plan:
    """Raises PlanError, which names the file, and what is wrong with it or in it."""
    try:
        return read_plan(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: byte {error.start} is not UTF-8") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _fault(entry: Any, where: str) -> Fault:
    if not isinstance(entry, dict):
        raise PlanError(f"{where} is no table; write [[fault]], then when = {{…}} and do = {{…}}")
    _refuse_unknown(entry, ("when", "do"), where)
    parts = []
    for part, key, kinds in (("when", "at", TRIGGERS), ("do", "action", ACTIONS)):
        table = entry.get(part)
        if not isinstance(table, dict):
            raise PlanError(f"{where}: {part} must be a table such as {{{key} = …}}")
        parts.append(_value(dict(table), key, typing.cast(dict[str, type[Any]], kinds), f"{where}, {part}"))
    try:
        return Fault(when=parts[0], do=parts[1])
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None


def _value(table: dict[str, Any], key: str, kinds: dict[str, type[Any]], where: str) -> Any:
    name = table.pop(key, None)
    if name not in kinds:
        problem = "is missing" if name is None else f"is {name!r}"
        raise PlanError(f"{where}: {key} {problem}; it must be one of {', '.join(kinds)}")
    kind = kinds[name]
    fields = {field.name: field for field in attrs.fields(kind)}
    _refuse_unknown(table, tuple(fields), where)
    types = typing.get_type_hints(kind)
    for field in fields.values():
        if field.default is attrs.NOTHING and field.name not in table:
            raise PlanError(f"{where}: {field.name} is missing")
    try:
        return kind(**{field: _read(value, types[field], field) for field, value in table.items()})
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None


def _read(value: Any, kind: Any, key: str) -> Any:
    optional = type(None) in typing.get_args(kind)
    if optional:
        if value == NEVER:
            return None
        kind = float
    if kind is float and type(value) in (int, float):
        return float(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        if value in choices:
            return kind(value)
        raise PlanError(f"{key} is {value!r}; it must be one of {', '.join(choices)}")
    if kind in (int, str) and type(value) is kind:
        return value
    expected = {int: "an integer", str: "a string", float: "a number"}[kind] + (f' or "{NEVER}"' if optional else "")
    raise PlanError(f"{key} is {value!r}; it must be {expected}")


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            instead = f"known here are {', '.join(known)}" if known else "nothing more belongs here"
            raise PlanError(f"{where + ': ' if where else ''}there is no key {key!r}; {instead}")
