"""`python -m benchmarks [--json]`: every hot path as a ratio to a peer that is measured in the same run."""

import json
import sys

from benchmarks import crowd, handoff, ram, rest, simulation, tls


def main() -> None:
    as_json = "--json" in sys.argv[1:]
    documents = []
    for module in (ram, tls, rest, handoff, simulation, crowd):  # RAM first: it forks, and the process is still small
        for result in module.results():
            print(result, file=sys.stderr if as_json else sys.stdout, flush=True)
            documents.append(result.as_json())
    if as_json:
        print(json.dumps(documents, indent=1))


if __name__ == "__main__":
    main()
