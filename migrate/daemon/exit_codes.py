"""How our processes end."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The command-line contract's."""

    DONE = 0
    NOT_DONE = 1
    BAD_INPUT = 2
    AUDIT_VIOLATED = 3
    INTERRUPTED = 130
