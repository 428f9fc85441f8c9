"""What a person types: options in, words and exit codes out.  No logic of migrations is here.

Exit codes: 0 done as asked, 1 it did not happen by design, 2 bad usage or input, 3 an audit was violated, 130
interrupted.  `--json` puts exactly one JSON document on standard output; everything else goes to standard error.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from migrate.cli import checking, migrating, specs, wire
from migrate.cli.output import complain
from migrate.daemon.run import BadInput, ExitCode
from migrate.releases import ReleaseError
from migrate.specs.files import SpecFileError
from migrate.specs.reading import ParseError

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
app.command(wire.wire)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code."""
    try:
        code = app(
            list(arguments), exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        complain(" ".join(str(error).split()))
        return ExitCode.BAD_INPUT
    except (BadInput, ReleaseError, SpecFileError, ParseError) as error:
        complain(str(error))
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # somebody closed our output, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.NOT_DONE
    return code if isinstance(code, int) else ExitCode.DONE
