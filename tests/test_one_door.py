"""One door: CBOR is read in one module, frames in another, and nothing decodes what a peer sent around them.

The sources are read, not trusted: an import anywhere, also inside a function, would be seen.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.test_layers import imports_of

ROOT: Final = Path(__file__).parents[1]
PROGRAM: Final = sorted((*ROOT.glob("migrate/**/*.py"), *ROOT.glob("sim_vmm/**/*.py")))

DOOR: Final = "migrate/cbor.py"

#: Who may call the door, and for what: each wraps its error in its own.
CALLERS: Final = {
    "migrate/protocol/frames.py": "bodies of frames",
    "migrate/payloads.py": "device payloads",
    "migrate/engine/negotiation.py": "spec variants of a preamble",
    "migrate/specs/offer.py": "our own bytes, before they are let out",
    "migrate/daemon/node.py": "the spec in the state directory",
    "migrate/published.py": "golden files",
}
#: Who may read frames: whoever has the bytes of one.
READERS: Final = {
    "migrate/daemon/link.py": "off a socket",
    "migrate/daemon/proxy.py": "between two sockets, to see what passes",
    "migrate/engine/image.py": "out of a state directory",
    "migrate/simulation/remembering.py": "off a simulated wire",
}

#: What would make objects of bytes in another way; `struct` has no names, counts or types that a peer could choose.
OTHER_DECODERS: Final = {"pickle", "marshal", "shelve", "cPickle", "dill", "msgpack", "yaml", "xml", "plistlib"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls_of(source: str, module: str, names: set[str]) -> Iterator[str]:
    """Calls of `module.name`, and names that were imported out of a module so called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if isinstance(node.value, ast.Name) and node.value.id == module:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] == module:
            yield from (alias.name for alias in node.names if alias.name in names)


def who_calls(module: str, names: set[str]) -> set[str]:
    return {name_of(path) for path in PROGRAM if any(calls_of(path.read_text(), module, names))}


def test_cbor2_is_imported_in_one_module() -> None:
    assert {name_of(path) for path in PROGRAM if "cbor2" in set(imports_of(path.read_text()))} == {DOOR}


def test_the_door_is_used_by_those_who_are_known_to_use_it() -> None:
    assert who_calls("cbor", {"decode"}) == CALLERS.keys()


def test_frames_are_read_by_those_who_are_known_to_read_them() -> None:
    assert who_calls("frames", {"decode_body", "decode_header"}) == READERS.keys()


def test_nothing_else_makes_objects_of_bytes() -> None:
    for path in PROGRAM:
        assert not OTHER_DECODERS & {name.partition(".")[0] for name in imports_of(path.read_text())}, path
        called = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not {"eval", "exec"} & called, path


def test_what_the_door_reads_with_is_called_once_and_behind_the_scan() -> None:
    tree = ast.parse((ROOT / DOOR).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    where = {
        name
        for name, function in functions.items()
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in {"loads", "load", "CBORDecoder"}
    }
    assert where == {"decode"}
    first = functions["decode"].body[1]  # behind the docstring
    assert isinstance(first, ast.Expr)
    assert ast.unparse(first) == "check(data, budget)"


@pytest.mark.parametrize(
    "source",
    [
        "from migrate import cbor\ndef f(x):\n    return cbor.decode(x)",
        "def f(x):\n    from migrate.cbor import decode\n    return decode(x)",
        "import migrate.cbor as cbor\ndecode = cbor.decode",
    ],
)
def test_a_call_is_seen_however_it_is_written(source: str) -> None:
    assert set(calls_of(source, "cbor", {"decode"})) == {"decode"}


def test_a_call_of_something_else_is_none() -> None:
    assert not list(calls_of("import cbor\nx.decode(); cbor.encode(); json.decode()", "cbor", {"decode"}))
