"""What a person types: options in, words and exit codes out.  No logic of migrations is here.

Exit codes: 0 done as asked, 1 it did not happen by design, 2 bad usage or input, 3 an audit was violated, 130
interrupted.  `--json` puts exactly one JSON document on standard output; everything else goes to standard error.
"""

import sys


def main() -> None:
    """The console script.  Its imports take up to a second, in which Ctrl-C is no reason for a traceback either."""
    try:
        from migrate.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
