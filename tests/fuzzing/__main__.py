"""`python -m tests.fuzzing TARGET SECONDS`: atheris looks for findings, guided by what each input makes the code do.

TARGET is one of `tests.fuzzing.targets`, or `all`, which share the time.  An input that is a finding is left in
tests/fuzzing/findings/TARGET, where the test suite runs it from then on; the exit status is 1.  What atheris learns, a
corpus of inputs that reach different code, is kept in .fuzz/TARGET and used again.
"""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import NoReturn

from tests.fuzzing import NAMES

FINDINGS = Path(__file__).parent / "findings"
CORPUS = Path(".fuzz")
INPUT_BYTES_MAX = 1 << 16
TIMEOUT_S = 30
SHARE_OF_MUTATORS = 0.5
"""How often our own mutators are asked, which know frames and CBOR, and not those of libFuzzer, which know bytes."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in {"all", *NAMES} or not arguments[1].isdecimal():
        print(f"usage: python -m tests.fuzzing all|{'|'.join(NAMES)} SECONDS", file=sys.stderr)
        return 2
    name, seconds = arguments[0], int(arguments[1])
    if name != "all":
        _fuzz(name, seconds)
    share = max(1, seconds // len(NAMES))
    failed = [name for name in NAMES if _in_a_process_of_its_own(name, share)]
    print(f"findings in {', '.join(failed)}: see {FINDINGS}" if failed else f"no finding in {len(NAMES)} targets")
    return 1 if failed else 0


def _in_a_process_of_its_own(name: str, seconds: int) -> int:
    """libFuzzer ends its process."""
    return subprocess.run([sys.executable, "-m", "tests.fuzzing", name, str(seconds)], check=False).returncode


def _fuzz(name: str, seconds: int) -> NoReturn:
    import atheris

    with atheris.instrument_imports(include=["migrate", "sim_vmm"]):
        from tests.fuzzing.generation import generate
        from tests.fuzzing.limits import Finding
        from tests.fuzzing.seeds import findings, read_finding, seeds
        from tests.fuzzing.targets import TARGETS

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*seeds(name), *map(read_finding, findings(name)))):
        if len(seed) <= INPUT_BYTES_MAX:
            (corpus / f"seed-{number}").write_bytes(seed)
    kept = FINDINGS / name
    kept.mkdir(parents=True, exist_ok=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < SHARE_OF_MUTATORS:
            mutated = generate(name, rng)
            if len(mutated) <= max_size:
                return mutated
        return bytes(atheris.Mutate(data, len(data)))

    def run(data: bytes) -> None:
        try:
            TARGETS[name](data)
        except Finding as finding:
            print(f"finding in {name}: {finding}; the input goes to {kept}", file=sys.stderr)
            raise

    atheris.Setup(
        [
            f"fuzz-{name}",
            str(corpus),
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-timeout={TIMEOUT_S}",
            f"-artifact_prefix={kept}/",
            "-print_final_stats=1",
        ],
        run,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
