"""Pure functions of the engines and the codec, with their answers remembered.

A campaign runs the same migration many thousand times, and up to where its fault strikes each run sends the very same
bytes.  Encoding a message, reading it again, judging a preamble: these depend on nothing but what they are given, so
the second time the first answer is as good.  A damaged frame has other bytes, and is read by the real code.

`remembering()` also puts the remembered form in the place of the negotiation's own functions for as long as it lasts.
It changes nothing but the time that a run takes, and a test holds it to that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import attrs
import numpy as np

from migrate import payloads
from migrate.engine import image, negotiation, payload_choice, ram, runs, source, target
from migrate.errors import RemoteProtocolError
from migrate.protocol import frames
from migrate.protocol.messages import Message
from migrate.simulation import machines
from migrate.simulation.machines import LightMachine
from migrate.specs import digest
from migrate.specs.offer import offer
from migrate.specs.version import SpecVersion
from sim_vmm.memory import GuestMemory
from sim_vmm.spec import Spec

REMEMBERED_MAX: Final = 1 << 15

encode = lru_cache(REMEMBERED_MAX)(frames.encode_frame)
"""`frames.encode_frame`.  Messages are values, so equal ones have equal bytes."""


decode_header = lru_cache(REMEMBERED_MAX)(frames.decode_header)
"""`frames.decode_header`."""


@lru_cache(REMEMBERED_MAX)
def decode(head: bytes, body: bytes) -> Message:
    """`frames.decode_body` of the frame with these bytes.  Raises RemoteProtocolError."""
    return frames.decode_body(frames.decode_header(head), body)


@attrs.frozen(eq=False)
class Posted:
    """The frame of a message, its header, and what its bytes are read as; None if a reader refuses them."""

    frame: bytes
    head: bytes
    read_as: Message | None


_POSTED: Final[dict[int, tuple[Message, Posted]]] = {}
"""By the identity of messages, which are kept, so that no other gets theirs."""


def post(message: Message) -> Posted:
    """What becomes of `message` on an undisturbed way.

    Raises:
        ValueError: see `frames.encode_frame`.
    """
    known = _POSTED.get(id(message))
    return _post(message) if known is None or known[0] is not message else known[1]


@lru_cache(REMEMBERED_MAX)
def _post(message: Message) -> Posted:
    frame = encode(message)
    head, body = frame[: frames.HEADER.size], frame[frames.HEADER.size :]
    try:
        posted = Posted(frame, head, decode(head, body))
    except RemoteProtocolError:
        return Posted(frame, head, None)
    if len(_POSTED) > REMEMBERED_MAX:
        _POSTED.clear()
    for same in (message, posted.read_as):
        if same == message:
            _POSTED[id(same)] = (same, posted)
    return posted


def _frame_of(message: Message) -> bytes:
    return post(message).frame


class _Answers:
    """Remembers by keys, as many as there is room for; what a key stands for is kept, so that it stays true."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._answers: dict[tuple[Any, ...], tuple[object, Any]] = {}

    def _note(self, key: tuple[Any, ...], kept: object, answer: Any) -> Any:
        if len(self._answers) > REMEMBERED_MAX:
            self._answers.clear()
        self._answers[key] = (kept, answer)
        return answer

    def cache_clear(self) -> None:
        self._answers.clear()


class ByIdentity(_Answers):
    """The answers of a function to the very same objects."""

    def __call__(self, *asked: Any) -> Any:
        key = tuple(map(id, asked))
        known = self._answers.get(key)
        return self._note(key, asked, self._function(*asked)) if known is None else known[1]


class _OfDevices(_Answers):
    """The answers of a function of a machine that looks at its making and at the states of its devices only."""

    def __call__(self, machine: Any, *others: Any) -> Any:
        if type(machine) is not LightMachine:
            return self._function(machine, *others)
        made_of = (*others, machine.spec, machine.birth, *machine.states)
        key = (machine.memory.page_count, *map(id, made_of))
        known = self._answers.get(key)
        return self._note(key, made_of, self._function(machine, *others)) if known is None else known[1]


class _OfPages(_Answers):
    """The answers of a function of RAM's layout and of something else, which `key` tells from others."""

    def __init__(self, function: Callable[..., Any], key: Callable[[Any], Any]) -> None:
        super().__init__(function)
        self._key = key

    def __call__(self, memory: GuestMemory, asked: Any, *others: Any) -> Any:
        key = (memory.page_count, self._key(asked), *others)
        known = self._answers.get(key)
        return self._note(key, None, self._function(memory, asked, *others)) if known is None else known[1]


class _Offers(_Answers):
    """`offer`, for specs of which there are few."""

    def __call__(self, spec: Spec, versions: Sequence[SpecVersion]) -> Any:
        key = (id(spec), tuple(version.number for version in versions))
        known = self._answers.get(key)
        return self._note(key, spec, tuple(self._function(spec, versions))) if known is None else known[1]


class _Judge(_Answers):
    """`judge`, without replacements."""

    def __call__(self, preamble: Any, release: Any, replacements: Any) -> Any:
        if replacements:
            return self._function(preamble, release, replacements)
        key = (id(preamble), id(release))
        known = self._answers.get(key)
        if known is not None:
            return known[1]
        return self._note(key, (preamble, release), self._function(preamble, release, replacements))


_in_use: Final[list[Callable[..., Any]]] = []
"""What remembers as long as `remembering()` lasts."""


def forget() -> None:
    """Whoever replaces something of the engines begins anew, and does so again afterwards."""
    _POSTED.clear()
    for function in (encode, decode_header, decode, _post, *_in_use):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _already_warm(*_: object) -> None:
    """Compiling the readers of messages is done once in a process."""


@contextmanager
def remembering() -> Iterator[None]:
    """Let the engines' pure functions remember their answers inside the block."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (negotiation, "offer", _Offers(offer)),
        (negotiation, "spec_digest", ByIdentity(digest.spec_digest)),
        (source, "encode_payload", lru_cache(REMEMBERED_MAX)(payloads.encode_payload)),
        (source, "encode_frame", _frame_of),
        (frames, "encode_frame", _frame_of),
        (frames, "encode_again", _frame_of),
        (source, "preamble_of", _OfDevices(negotiation.preamble_of)),
        (source, "not_representable", _OfDevices(lambda *asked: tuple(payload_choice.not_representable(*asked)))),
        (source, "common_versions", ByIdentity(payload_choice.common_versions)),
        (source, "chooser", ByIdentity(payload_choice.chooser)),
        (source, "device_message", ByIdentity(source.device_message)),
        (machines, "expressed", ByIdentity(machines.expressed)),
        (target, "read_device", ByIdentity(image.read_device)),
        (image, "read_device", ByIdentity(image.read_device)),
        (image, "frames_in", lru_cache(REMEMBERED_MAX)(image.frames_in)),
        (ram, "pack", _OfPages(runs.pack, np.ndarray.tobytes)),
        (ram, "unpack", _OfPages(runs.unpack, bytes)),
        (target, "judge", _Judge(negotiation.judge)),
        (target, "warm_up_devices", _already_warm),
        (image, "decode_payload", lru_cache(REMEMBERED_MAX)(payloads.decode_payload)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
        _in_use.append(function)
    try:
        yield
    finally:
        del _in_use[-len(replaced) :]
        for module, name, function in before:
            setattr(module, name, function)
