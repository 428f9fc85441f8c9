"""All commands, and the one place where what they raise becomes a line and an exit code."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

from migrate.cli import access, checking, crowd, exploring, host, ledger, migrating, serving, specs, state, wire
from migrate.cli.output import complain
from migrate.daemon.address import BadInput
from migrate.daemon.run import ExitCode
from migrate.daemon.state import StateError
from migrate.releases import ReleaseError
from migrate.specs.files import SpecFileError
from migrate.specs.reading import ParseError
from sim_vmm.guest import GuestDoesNotFit

app = App(
    name="migrate",
    help="Rehearse VM live migration: a source and a target daemon, one emulated machine.",
    version=f"migrate {version('migrate-rehearsal')}",
    version_flags=["--version"],
    help_format="plaintext",
    default_parameter=None,
)
app.register_install_completion_command(name="install-completion", add_to_startup=False)
app.command(specs.app)
app.command(checking.releases)
app.command(checking.check)
app.command(checking.matrix)
app.command(migrating.rehearse)
app.command(migrating.source)
app.command(migrating.target)
app.command(serving.serve)
app.command(host.app)
app.command(crowd.crowd)
app.command(state.status)
app.command(state.resolve)
app.command(exploring.explore)
app.command(exploring.replay)
app.command(ledger.ledger)
app.command(wire.wire)
app.command(access.certs)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code."""
    try:
        code = app(
            list(arguments), exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        complain(_usage(error))
        return ExitCode.BAD_INPUT
    except (BadInput, GuestDoesNotFit, ReleaseError, SpecFileError, ParseError) as error:
        complain(str(error))
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except StateError as error:  # whether a record was written: a restart will find out
        complain(str(error))
        return ExitCode.NOT_DONE
    except BaseExceptionGroup as group:  # Ctrl-C before a daemon listened for it
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # somebody closed our output, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.NOT_DONE
    return code if isinstance(code, int) else ExitCode.DONE


def _usage(error: CycloptsError) -> str:
    """What is wrong with a command line, and where to read on."""
    command = " ".join(("migrate", *(error.command_chain or ())))
    match error:
        case MissingArgumentError(argument=argument) if argument is not None:
            problem = f"{argument.name} is missing"
        case UnusedCliTokensError(unused_tokens=tokens) if tokens:
            problem = f"too many arguments: {' '.join(map(repr, tokens))}"
        case _:
            problem = " ".join(str(error).split()).rstrip(".")
    return f"{problem}; see {command} --help"
