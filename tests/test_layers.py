"""The tree is the architecture: who may import whom.

The contracts in pyproject.toml are checked by import-linter.  Beside it stands a check of a page, which reads the
sources itself: it would notice if the contracts stopped meaning what they say.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

#: What may not be imported, by whom: a package, or a module and everything in it.
FORBIDDEN: dict[str, set[str]] = {
    "sim_vmm": {"migrate", "trio", "socket", "cbor2", "cattrs", "json", "sqlite3", "asyncio"},
    "migrate/specs": {"trio", "socket", "migrate.protocol", "migrate.engine", "migrate.daemon"},
    "migrate/protocol": {"trio", "socket", "migrate.engine", "migrate.daemon"},
    "migrate/engine": {"trio", "socket", "sqlite3", "os", "time", "random", "migrate.daemon", "migrate.rehearsal"},
    "migrate/daemon": {"migrate.cli", "migrate.rehearsal"},
    "migrate/simulation": {
        "trio",
        "asyncio",
        "threading",
        "socket",
        "os",
        "time",
        "random",
        "secrets",
        "migrate.daemon",
        "migrate.faults",
        "migrate.rehearsal",
        "migrate.cli",
    },
    "migrate/faults": {"trio", "asyncio", "socket", "time", "migrate.daemon", "migrate.rehearsal", "migrate.cli"},
    "migrate/rehearsal": {"migrate.cli"},
}
KNOWS_TRIO = ("migrate/daemon", "migrate/cli", "migrate/rehearsal")


def imports_of(source: str) -> Iterator[str]:
    """Every module that `source` names in an import, wherever it stands; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(source: str, forbidden: set[str]) -> list[str]:
    """The imports in `source` of a forbidden module, or of something inside one."""
    parents = [{name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)} for name in imports_of(source)]
    return sorted({module for names in parents for module in names & forbidden})


def sources(place: str) -> dict[str, str]:
    """The text of every module at `place`, a package or a module, by its path."""
    path = ROOT / place
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return {str(file.relative_to(ROOT)): file.read_text() for file in found if file.exists()}


@pytest.mark.parametrize("place", FORBIDDEN)
def test_a_layer_names_nothing_from_above_or_outside(place: str) -> None:
    texts = sources(place)
    assert texts
    found = {path: offences(text, FORBIDDEN[place]) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_trio_is_named_only_where_the_daemons_and_the_command_line_are() -> None:
    texts = sources("migrate") | sources("sim_vmm")
    naming = [path for path, text in texts.items() if offences(text, {"trio"})]
    assert naming
    assert [path for path in naming if not path.startswith(KNOWS_TRIO)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trio", ["trio"]),
        ("import trio.lowlevel as low", ["trio"]),
        ("from trio import Event", ["trio"]),
        ("def late():\n    import trio", ["trio"]),
        ("from migrate import daemon", ["migrate.daemon"]),
        ("from migrate.daemon.link import SocketLink", ["migrate.daemon"]),
        ("import trionic, migrate.daemons", []),
        ("from . import trio", []),
    ],
)
def test_the_check_of_this_page_can_fail(source: str, found: list[str]) -> None:
    assert offences(source, {"trio", "migrate.daemon"}) == found


def lint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_every_contract_is_kept() -> None:
    result = lint()
    assert result.returncode == 0, result.stdout + result.stderr
    for name in CONTRACTS:
        assert f"{name} KEPT" in result.stdout


def test_a_contract_that_is_broken_is_found(tmp_path: Path) -> None:
    """The machine is imported by the specs: a contract that forbids it must break."""
    config = tmp_path / "contracts.toml"
    config.write_text(
        '[tool.importlinter]\nroot_packages = ["sim_vmm", "migrate"]\n'
        '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["sim_vmm", "migrate.specs"]\n'
    )
    result = lint("--config", str(config))
    assert result.returncode == 1
    assert "upside down BROKEN" in result.stdout
