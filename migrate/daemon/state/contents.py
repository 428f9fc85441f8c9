"""What a node keeps: values, and the rows that they are in the database.

`Contents` is everything, as it was after one transaction.  A change is a function from contents to contents, and
`differences` is the SQL that takes the database from one to the other.  So the same few lines write a record, write
several things together, and write the old ones back when a host's failure leaves it open what was written.

Every transaction raises `sequence` by one and leaves a digest of all that decides anything in the database: rows of
different ages are noticed even if each of them is whole, as when an old database file meets a newer write-ahead log.
History decides nothing and is not in the digest.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import attrs
import xxhash

from migrate.engine.handoff import NEVER_HAD, Holding, Record

#: SQLite's integers have a sign, those on the wire have none.
INTEGER_MAX: Final = (1 << 63) - 1
ATTEMPTS_KEPT: Final = 1000

Value = int | str | bytes | None
Row = tuple[Value, ...]
Statement = tuple[str, Row]

SCHEMA: Final[dict[str, str]] = {
    "directory": "CREATE TABLE directory (one INTEGER PRIMARY KEY, id BLOB, node TEXT, sequence INTEGER, digest BLOB)",
    "records": (
        "CREATE TABLE records (vm_id BLOB PRIMARY KEY, holding TEXT, generation INTEGER, peer TEXT, owned INTEGER, "
        "session INTEGER, highest INTEGER)"
    ),
    "machines": (
        "CREATE TABLE machines (vm_id BLOB PRIMARY KEY, name TEXT, spec_version INTEGER, spec_document BLOB, "
        "birth_release TEXT, birth_shows TEXT, build TEXT, guest TEXT, memory_bytes INTEGER)"
    ),
    "images": ("CREATE TABLE images (vm_id BLOB PRIMARY KEY, generation INTEGER, ram TEXT, boot_id TEXT, frames BLOB)"),
    "debts": (
        "CREATE TABLE debts (vm_id BLOB, generation INTEGER, peer TEXT, address TEXT, owned INTEGER, "
        "PRIMARY KEY (vm_id, generation, peer))"
    ),
    "facts": "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)",
    "attempts": (
        "CREATE TABLE attempts (vm_id BLOB, number INTEGER, side TEXT, outcome TEXT, phase TEXT, generation INTEGER, "
        "peer TEXT, error TEXT, at INTEGER, PRIMARY KEY (vm_id, number))"
    ),
}
#: The tables whose rows are those of one machine and are replaced together.
OF_MACHINE: Final = ("records", "machines", "images", "debts")


@attrs.frozen(kw_only=True)
class KnownMachine:
    """A machine as this node has known it; enough to make it anew.  `spec_document` is opaque here.

    `birth_release` and `birth_shows` were fixed at its birth, `release` is the one that this node's build has.
    """

    vm_id: UUID
    name: str
    spec_version: int
    spec_document: bytes = attrs.field(repr=False)
    birth_release: str
    birth_shows: tuple[str, ...]
    release: str
    guest: str
    memory_bytes: int


@attrs.frozen(kw_only=True)
class PauseImage:
    """A paused machine: `frames` is everything but RAM, opaque here; `ram` the name of a file in the directory's `ram`.

    RAM is worth something only while the host has not been booted since: `boot_id` is of the boot that made it.
    """

    frames: bytes = attrs.field(repr=False)
    ram: str = attrs.field()
    boot_id: str
    generation: int

    @ram.validator
    def _is_a_bare_name(self, _: object, ram: str) -> None:
        if not ram or "/" in ram or ram in (".", ".."):
            raise ValueError(f"{ram!r} is not the name of a file")


@attrs.frozen(kw_only=True)
class Debt:
    """What `peer` at `address` must still be told of a generation: that it is owned here, or else declined."""

    generation: int
    peer: str
    address: str
    owned: bool


@attrs.frozen(kw_only=True)
class Attempt:
    """How an attempt ended.  `number` counts those of the machine from 1, `at` is wall time in ns."""

    number: int
    side: str
    outcome: str
    phase: str
    generation: int
    peer: str
    error: str | None
    at: int


@attrs.frozen(kw_only=True)
class Kept:
    """All that is kept of one machine but its history."""

    vm_id: UUID
    record: Record = NEVER_HAD
    highest: int = 0
    machine: KnownMachine | None = None
    image: PauseImage | None = None
    debts: tuple[Debt, ...] = ()

    @cached_property
    def rows(self) -> dict[str, tuple[Row, ...]]:
        """Of each table of a machine."""
        key, record, machine, image = self.vm_id.bytes, self.record, self.machine, self.image
        return {
            "records": (
                (
                    key,
                    str(record.holding),
                    record.generation,
                    record.peer,
                    record.owned,
                    record.session,
                    self.highest,
                ),
            ),
            "machines": ()
            if machine is None
            else (
                (
                    key,
                    machine.name,
                    machine.spec_version,
                    machine.spec_document,
                    machine.birth_release,
                    json.dumps(machine.birth_shows),
                    machine.release,
                    machine.guest,
                    machine.memory_bytes,
                ),
            ),
            "images": () if image is None else ((key, image.generation, image.ram, image.boot_id, image.frames),),
            "debts": tuple((key, debt.generation, debt.peer, debt.address, int(debt.owned)) for debt in self.debts),
        }

    @cached_property
    def fingerprint(self) -> bytes:
        return fingerprint_of_rows(self.rows)

    @classmethod
    def from_rows(cls, vm_id: UUID, rows: Mapping[str, tuple[Any, ...]]) -> "Kept":
        """The inverse of `rows`; the caller has checked the digest."""
        ((_, holding, generation, peer, owned, session, highest),) = rows["records"]
        machine, image = None, None
        for _, name, version, document, birth_release, shows, release, guest, memory_bytes in rows["machines"]:
            machine = KnownMachine(
                vm_id=vm_id,
                name=name,
                spec_version=version,
                spec_document=document,
                birth_release=birth_release,
                birth_shows=tuple(json.loads(shows)),
                release=release,
                guest=guest,
                memory_bytes=memory_bytes,
            )
        for _, of, ram, boot_id, frames in rows["images"]:
            image = PauseImage(frames=frames, ram=ram, boot_id=boot_id, generation=of)
        return cls(
            vm_id=vm_id,
            record=Record(Holding(holding), generation, peer=peer, owned=owned, session=session),
            highest=highest,
            machine=machine,
            image=image,
            debts=tuple(
                Debt(generation=of, peer=to, address=address, owned=bool(owned))
                for _, of, to, address, owned in rows["debts"]
            ),
        )


@attrs.frozen(kw_only=True)
class Contents:
    """Everything, as it was after transaction `sequence` of the database `database_id`."""

    database_id: bytes
    node: str
    sequence: int = 0
    machines: Mapping[UUID, Kept] = attrs.field(factory=dict)
    facts: Mapping[str, str] = attrs.field(factory=dict)
    attempts: Mapping[UUID, tuple[Attempt, ...]] = attrs.field(factory=dict)

    @cached_property
    def digest(self) -> bytes:
        return digest_of(
            self.database_id,
            self.node,
            self.sequence,
            self.facts.items(),
            (kept.fingerprint for kept in self.machines.values()),
        )

    def kept(self, vm_id: UUID) -> Kept:
        """What is known of a machine, or that nothing is."""
        return self.machines.get(vm_id) or Kept(vm_id=vm_id)

    def having(self, kept: Kept) -> "Contents":
        return attrs.evolve(self, machines={**self.machines, kept.vm_id: kept})


def fingerprint(values: Iterable[Value]) -> bytes:
    """128 bits over values and their types."""
    hasher = xxhash.xxh3_128()
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        hasher.update(f"{type(value).__name__}:{len(data)}:".encode())
        hasher.update(data)
    return hasher.digest()


def fingerprint_of_rows(rows: Mapping[str, Iterable[Row]]) -> bytes:
    return fingerprint(value for table in OF_MACHINE for row in rows[table] for value in (table, *row))


def digest_of(
    database_id: Value,
    node: Value,
    sequence: Value,
    facts: Iterable[tuple[Value, Value]],
    machines: Iterable[bytes],
) -> bytes:
    """Over everything that decides anything, in whatever order it comes."""
    named = [fingerprint(fact) for fact in facts]
    return fingerprint([database_id, node, sequence, len(named), *sorted(named), *sorted(machines)])


def differences(old: Contents, new: Contents) -> Iterator[Statement]:
    """What takes a database that holds `old` to `new`; nothing that is in `old` may be missing in `new` but rows."""
    for vm_id, kept in new.machines.items():
        before = old.machines.get(vm_id)
        if kept is not before:
            yield from _replacing(vm_id, {} if before is None else before.rows, kept.rows)
    for name, value in new.facts.items():
        if old.facts.get(name) != value:
            yield _inserting("facts", (name, value))
    for vm_id, attempts in new.attempts.items():
        if attempts is not old.attempts.get(vm_id):
            yield from _logging(vm_id, old.attempts.get(vm_id, ()), attempts)
    yield (
        "UPDATE directory SET id = ?, node = ?, sequence = ?, digest = ?",
        (new.database_id, new.node, new.sequence, new.digest),
    )


def creation(contents: Contents) -> Iterator[Statement]:
    """What makes the tables of an empty database, with nothing in them yet."""
    for statement in SCHEMA.values():
        yield statement, ()
    yield _inserting("directory", (1, contents.database_id, contents.node, contents.sequence, contents.digest))


def _replacing(
    vm_id: UUID, before: Mapping[str, tuple[Row, ...]], after: Mapping[str, tuple[Row, ...]]
) -> Iterator[Statement]:
    for table in OF_MACHINE:
        rows = before.get(table, ())
        if rows != after[table]:
            if rows:
                yield f"DELETE FROM {table} WHERE vm_id = ?", (vm_id.bytes,)
            for row in after[table]:
                yield _inserting(table, row)


def _logging(vm_id: UUID, before: tuple[Attempt, ...], after: tuple[Attempt, ...]) -> Iterator[Statement]:
    known, stays = {attempt.number for attempt in before}, {attempt.number for attempt in after}
    for number in sorted(known - stays):
        yield "DELETE FROM attempts WHERE vm_id = ? AND number = ?", (vm_id.bytes, number)
    for attempt in after:
        if attempt.number not in known:
            yield _inserting("attempts", (vm_id.bytes, *attrs.astuple(attempt)))


def _inserting(table: str, row: Row) -> Statement:
    return f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row
