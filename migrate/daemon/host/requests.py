"""What may be asked of a host over its control socket: one JSON object a line, and one a line in answer.

    {"id": 7, "do": "offer", "machine": "web-1", "migration": "5f2b6c1e-8f0a-4a57-9d6e-3f1c2b7a9e01"}
    {"id": 7, "ok": {"stage": "ready", "address": "127.0.0.1:4600", ...}}
    {"id": 8, "error": {"class": "NoSuchMachine", "message": "no machine 'web-9' is here; see migrate host list"}}

`id` is the asker's own, and is what an answer is known by: those that take time are overtaken by others.  Fields that a
request does not have are refused, as everywhere (`migrate.plain`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

import attrs
import cattrs

from migrate.plain import Misfit, make_converter, structure, wrong_type
from migrate.protocol.messages import NAME_MAX
from migrate.specs.reading import ParseError, parse_json
from sim_vmm.integers import AtMost, Range

LINE_MAX: Final = 4 << 20
"""Bytes of a request: a spec as the control API takes it, with its blobs."""
SMALL: Final = Range(0, 1 << 31)
Count = Annotated[int, SMALL]
Name = Annotated[str, AtMost(NAME_MAX)]


@attrs.frozen(kw_only=True)
class Status:
    """Counts, limits, what the process takes."""

    DO: ClassVar[str] = "status"


@attrs.frozen(kw_only=True)
class List:
    """All machines that are here or come; only `machine`, if that is given."""

    DO: ClassVar[str] = "list"
    machine: Name | None = None


@attrs.frozen(kw_only=True)
class Boot:
    """Machines are born: `count` of them are called `name`-1, `name`-2, ...; answered when all of their guests run."""

    DO: ClassVar[str] = "boot"
    spec: Any = attrs.field(repr=False)
    name: Name
    count: Count = 1
    guest: Name = "stamp"
    memory_mb: Count | None = None
    seed: Count = 0
    api_version: Count | None = None


@attrs.frozen(kw_only=True)
class Offer:
    """`machine` may be taken by whoever presents `migration`; answered when it is its turn to be."""

    DO: ClassVar[str] = "offer"
    machine: Name
    migration: UUID = attrs.field(repr=False)
    retries: Count = 0


@attrs.frozen(kw_only=True)
class Take:
    """Bring in what the host at `source` offers as `migration`, when it is its turn; answered at once, see `Wait`."""

    DO: ClassVar[str] = "take"
    source: Name
    migration: UUID = attrs.field(repr=False)
    retries: Count = 0


@attrs.frozen(kw_only=True)
class Wait:
    """Answered when `migration` is concluded on this host, with its outcome."""

    DO: ClassVar[str] = "wait"
    migration: UUID = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Cancel:
    """End the migration of `machine`, or the one whose id that is, if it can still be undone."""

    DO: ClassVar[str] = "cancel"
    machine: Name


@attrs.frozen(kw_only=True)
class Limit:
    """Other limits from now on: migrations at once, bytes a second for all of them together (0: no cap)."""

    DO: ClassVar[str] = "limit"
    migrations_max: Count | None = None
    bandwidth: Annotated[int, Range(0, 1 << 50)] | None = None


@attrs.frozen(kw_only=True)
class Inspect:
    """What RAM and console of `machine` tell of its guest's work."""

    DO: ClassVar[str] = "inspect"
    machine: Name


@attrs.frozen(kw_only=True)
class Stop:
    """End the host: `drain` completes what is in progress, `abort` undoes what can be; answered when that is done."""

    DO: ClassVar[str] = "stop"
    how: Name = "drain"


Request = Status | List | Boot | Offer | Take | Wait | Cancel | Limit | Inspect | Stop
REQUESTS: Final[Mapping[str, type[Any]]] = {
    kind.DO: kind for kind in (Status, List, Boot, Offer, Take, Wait, Cancel, Limit, Inspect, Stop)
}


class BadRequest(Exception):
    """A line is no request; `number` is its id, if it has one."""

    def __init__(self, number: int | None, message: str) -> None:
        super().__init__(message)
        self.number = number


def _converter() -> cattrs.Converter:
    converter = make_converter()

    def read_uuid(value: Any, _: Any) -> UUID:
        if type(value) is not str:
            raise wrong_type(value, "a UUID")
        try:
            return UUID(value)
        except ValueError:
            raise Misfit(error="WrongType", message="expected a UUID, got another string") from None

    converter.register_structure_hook(UUID, read_uuid)
    return converter


_CONVERTER: Final = _converter()


def read_request(line: bytes) -> tuple[int, Request]:
    """Raises BadRequest."""
    try:
        plain = parse_json(line)
    except ParseError as error:
        raise BadRequest(None, str(error)) from error
    if not isinstance(plain, dict):
        raise BadRequest(None, "a request is a JSON object")
    number = plain.get("id")
    if type(number) is not int or not 0 <= number < 1 << 53:
        raise BadRequest(None, "a request has an id, an integer from 0 to 2^53-1")
    kind = REQUESTS.get(plain.get("do", "")) if isinstance(plain.get("do"), str) else None
    if kind is None:
        raise BadRequest(number, f"do is none of {', '.join(REQUESTS)}")
    twice = getattr(plain, "given_twice", lambda: None)()
    if twice is not None:
        raise BadRequest(number, f"{twice[:NAME_MAX]!r} is given twice")
    try:
        fields = {key: value for key, value in plain.items() if key not in ("id", "do")}
        request: Request = structure(_CONVERTER, fields, kind)
        return number, request
    except Misfit as error:
        raise BadRequest(number, str(error)) from error


def request_json(number: int, request: Request) -> dict[str, Any]:
    """As it is asked; the inverse of `read_request`."""
    fields = {
        field.name: getattr(request, field.name)
        for field in attrs.fields(type(request))
        if getattr(request, field.name) is not None
    }
    plain = {name: str(value) if isinstance(value, UUID) else value for name, value in fields.items()}
    return {"id": number, "do": request.DO, **plain}
