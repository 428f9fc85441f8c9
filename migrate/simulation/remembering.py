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

from migrate import payloads
from migrate.engine import image, negotiation, source, target
from migrate.protocol import frames
from migrate.protocol.messages import Message
from migrate.specs import digest
from migrate.specs.offer import Variant, Withheld, offer
from migrate.specs.version import SpecVersion
from sim_vmm.devices import places
from sim_vmm.payloads import conversions
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


class _ByIdentity:
    """The answers of a function to the very same objects, which are kept, so that no other gets their identity."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._answers: dict[tuple[int, ...], tuple[object, Any]] = {}

    def __call__(self, *asked: Any) -> Any:
        key = tuple(map(id, asked))
        known = self._answers.get(key)
        if known is None:
            if len(self._answers) > REMEMBERED_MAX:
                self._answers.clear()
            known = self._answers[key] = (asked, self._function(*asked))
        return known[1]


class _Offers:
    """`offer`, for specs of which there are few."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, tuple[int, ...]], tuple[Spec, tuple[Variant | Withheld, ...]]] = {}

    def __call__(self, spec: Spec, versions: Sequence[SpecVersion]) -> tuple[Variant | Withheld, ...]:
        key = (id(spec), tuple(version.number for version in versions))
        if key not in self._answers:
            self._answers[key] = (spec, tuple(offer(spec, versions)))
        return self._answers[key][1]


def _judge_remembered(judge: Callable[..., Any]) -> Callable[..., Any]:
    without_replacements = _ByIdentity(lambda preamble, release: judge(preamble, release, {}))

    def remembered(preamble: Any, release: Any, replacements: Any) -> Any:
        if replacements:
            return judge(preamble, release, replacements)
        return without_replacements(preamble, release)

    return remembered


def _already_warm() -> None:
    """Compiling the readers of messages is done once in a process."""


@contextmanager
def remembering() -> Iterator[None]:
    """Let the engines' pure functions remember their answers inside the block."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (negotiation, "offer", _Offers()),
        (negotiation, "spec_digest", _ByIdentity(digest.spec_digest)),
        (source, "encode_payload", lru_cache(REMEMBERED_MAX)(payloads.encode_payload)),
        (source, "encode_frame", encode),
        (frames, "encode_frame", encode),
        (target, "judge", _judge_remembered(negotiation.judge)),
        (places, "versions_of", lru_cache(REMEMBERED_MAX)(conversions.versions_of)),
        (target, "warm_up_payloads", _already_warm),
        (target, "warm_up_messages", _already_warm),
        (image, "decode_payload", lru_cache(REMEMBERED_MAX)(payloads.decode_payload)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
