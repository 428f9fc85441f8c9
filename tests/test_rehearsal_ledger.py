"""A rehearsal between two processes, judged from files: storage, RAM, console, wire."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from migrate.daemon.backends import crucible_bytes, storage_for
from migrate.daemon.pair import PairResult
from migrate.rehearsal.audit import Evidence, audit
from migrate.rehearsal.leftovers import Leftovers, disk_file
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import BlobStorageBackend, CrucibleStorageBackend, NvmeDisk, VirtioDisk
from tests.commands import start, start_within
from tests.ledgers import NIC, VIRTIO
from tests.machines import COM1, make_spec

SPECS = Path(__file__).parent / "fixtures/specs/valid"


def rehearse(spec: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    said = start_within(60, "rehearse", SPECS / spec, "--memory-mb", "16", "--json", *arguments)
    assert said.out, said.err
    document: dict[str, Any] = said.document
    return said.code, document


def test_a_rehearsal_keeps_a_ledger_and_has_it_read(tmp_path: Path) -> None:
    code, document = rehearse("v3-local-storage.json", "--storage", os.fspath(tmp_path), "--after-s", "0.1")
    assert document["audit"]["violations"] == []
    assert (code, document["outcome"], document["owner"]) == (0, "migrated", "target")
    assert "ledger" in document["audit"]["checks"]
    guest = document["guest"]
    assert guest["records_found"] == guest["records_acknowledged"] > 10
    assert all(0 < guest["away_ms"][how] < 10_000 for how in ("clock", "console", "wire"))
    assert guest["blackout_ms"] > 0
    assert sorted(path.suffix or path.name for path in tmp_path.iterdir()) == [".disk", "fence"]


def test_a_refused_machine_keeps_its_ledger_where_it_is() -> None:
    code, document = rehearse("v6-local-no-write-cache.json", "--to", "r3", "--after-s", "0.1")
    assert (code, document["outcome"], document["owner"]) == (1, "refused", "source")
    assert document["audit"]["violations"] == []
    assert document["guest"]["records_found"] == document["guest"]["records_acknowledged"] > 0


def test_a_guest_that_does_not_fit_is_bad_input(tmp_path: Path) -> None:
    machine = (SPECS / "v6-minimal.json", "--memory-mb", "1")
    said = start("source", *machine, "--guest", "dirty:1M,2M", "--listen", "127.0.0.1:0")
    assert said.code == 2
    assert "guest program 'dirty' does not fit this machine" in said.complaint


def test_a_ledger_of_which_nothing_is_left_is_a_violation() -> None:
    facts = {"program": "ledger", "sequence": 5, "stale_pages": [], "records": None}
    ended = {"event": "ended", "side": "source", "at_ns": 1, "runs_here": True, "guest": facts}
    pair = PairResult(source=[ended], target=[], exit_codes={"source": 0, "target": 0})
    found = audit(Evidence(pair=pair, expected_spec="")).violations
    assert found == (("ledger", "the guest kept a ledger, and nothing is left of it to be read"),)


@pytest.mark.parametrize(("memory_mb", "code"), [("512", 0), ("64", 2)])
def test_a_check_gives_the_guest_the_ram_that_it_needs_if_the_machine_has_it(
    tmp_path: Path, memory_mb: str, code: int
) -> None:
    spec = json.loads((SPECS / "v6-minimal.json").read_text())
    spec["board"]["memory_mb"] = int(memory_mb)
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    said = start("check", file, "--guest", "dirty:1M,64M")
    assert said.code == code, said.err
    assert "a working set of 67108864 bytes" in said.err or code == 0


def test_an_address_that_is_taken_is_bad_input() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = start("source", SPECS / "v6-minimal.json", "--listen", address)
    assert said.code == 2
    assert f"cannot listen on {address}" in said.complaint


# Which file a disk is


CRUCIBLE = CrucibleStorageBackend('{"type": "region"}', False)
BLOB = BlobStorageBackend("AAAA" * 128, False)


def test_the_disk_of_a_ledger_is_found_by_its_slot(tmp_path: Path) -> None:
    crucible, blob, file = SpecKey.parse("volume"), SpecKey.parse("seed/1"), SpecKey.parse("disk")
    spec = make_spec(
        {
            **COM1,
            **NIC,
            "a": VirtioDisk(crucible, PciPath(0, 16, 0)),
            "b": NvmeDisk(blob, PciPath(0, 17, 0), bytes(20), True),
            "8a1c7a30-14d6-4b9e-8d1c-0a4e9b7d2f41": VirtioDisk(file, PciPath(0, 18, 0)),
            "volume": CRUCIBLE,
            "seed/1": BLOB,
            "disk": VIRTIO["disk"],
        }
    )
    leftovers = Leftovers(left=tmp_path / "left", storage=tmp_path / "storage", wire=None)
    found = [disk_file(leftovers, spec, slot) for slot in range(3)]
    assert found == [
        tmp_path / "storage/disk.disk",
        tmp_path / "storage/volume.region/data",
        tmp_path / "left/seed%2F1.blob",
    ]
    with pytest.raises(AssertionError, match="'nic' is no disk"):
        disk_file(leftovers, spec, 3)


REGION = '"type": "region", "block_size": 512, "blocks_per_extent": 100, "extent_count": 3'


@pytest.mark.parametrize(
    ("request_json", "size"),
    [
        (f"{{{REGION}}}", 153_600),
        (f'{{"type": "volume", "sub_volumes": [{{{REGION}}}, {{{REGION}}}]}}', 307_200),
        ('{"type": "volume", "sub_volumes": []}', None),
        ('{"type": "volume", "sub_volumes": {}}', None),
        ('{"type": "region", "block_size": true, "blocks_per_extent": 100, "extent_count": 3}', None),
        ('{"type": "region", "block_size": -512, "blocks_per_extent": 100, "extent_count": 3}', None),
    ],
)
def test_a_crucible_request_tells_how_large_the_volume_is(request_json: str, size: int | None) -> None:
    assert crucible_bytes("volume", CrucibleStorageBackend(request_json, False)) == size


@pytest.mark.parametrize("request_json", ["", "[]", "{}", "{", "[" * 100_000])
def test_what_is_no_request_makes_no_machine(request_json: str) -> None:
    spec = make_spec(
        {
            **COM1,
            "disk": VirtioDisk(SpecKey.parse("volume"), PciPath(0, 16, 0)),
            "volume": CrucibleStorageBackend(request_json, False),
        }
    )
    with pytest.raises(ValueError, match="backend 'volume': request_json is no volume construction request"):
        storage_for(spec, None)
