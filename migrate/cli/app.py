"""All commands, and the one place where what they raise becomes a line and an exit code.

A command's module is imported when it is asked for: whoever wants to see a spec need not wait for the daemons.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

from migrate.cli.output import complain
from migrate.daemon.exit_codes import ExitCode

COMMANDS: Final = {
    "spec": "specs:app",
    "releases": "checking:releases",
    "check": "checking:check",
    "matrix": "checking:matrix",
    "rehearse": "rehearsing:rehearse",
    "source": "migrating:source",
    "target": "migrating:target",
    "serve": "serving:serve",
    "host": "host:app",
    "crowd": "crowd:crowd",
    "status": "state:status",
    "resolve": "state:resolve",
    "explore": "exploring:explore",
    "replay": "exploring:replay",
    "ledger": "ledger:ledger",
    "wire": "wire:wire",
    "certs": "access:certs",
}
"""Where each is, below `migrate.cli`."""

app = App(
    name="migrate",
    help="Rehearse VM live migration: a source and a target daemon, one emulated machine.",
    version=f"migrate {version('migrate-rehearsal')}",
    version_flags=["--version"],
    help_format="plaintext",
    default_parameter=None,
)
app.register_install_completion_command(name="install-completion", add_to_startup=False)
for name, place in COMMANDS.items():
    app.command(f"migrate.cli.{place}", name=name)


def import_all() -> None:
    """For whoever lists the commands with what they are for, or is to carry out any of them at once."""
    for name in COMMANDS:
        app[name]


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code."""
    try:
        if not arguments or arguments[0] in app.help_flags:
            import_all()
        code = app(
            list(arguments), exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        complain(_usage(error))
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseExceptionGroup as group:  # Ctrl-C before a daemon listened for it
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # somebody closed our output, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.NOT_DONE
    except Exception as error:
        known = _code_of(error)
        if known is None:
            raise
        complain(str(error))
        return known
    return code if isinstance(code, int) else ExitCode.DONE


def _code_of(error: Exception) -> ExitCode | None:
    """Of an error that says all there is to say; None of any other.  Whoever raised it has imported its class."""
    from migrate.daemon.address import BadInput
    from migrate.daemon.state.errors import StateError
    from migrate.releases import ReleaseError
    from migrate.specs.files import SpecFileError
    from migrate.specs.reading import ParseError
    from sim_vmm.guest import GuestDoesNotFit

    if isinstance(error, BadInput | GuestDoesNotFit | ReleaseError | SpecFileError | ParseError):
        return ExitCode.BAD_INPUT
    if isinstance(error, StateError):  # whether a record was written: a restart will find out
        return ExitCode.NOT_DONE
    return None


def _usage(error: CycloptsError) -> str:
    """What is wrong with a command line, and where to read on."""
    command = " ".join(("migrate", *(error.command_chain or ())))
    match error:
        case MissingArgumentError(argument=argument) if argument is not None:
            problem = f"{argument.name} is missing"
        case UnusedCliTokensError(unused_tokens=tokens) if tokens:
            problem = f"too many arguments: {' '.join(map(repr, tokens))}"
        case _:
            problem = " ".join(str(error).split()).replace(", ...", " and others").rstrip(".")
    return f"{problem}; see {command} --help"
