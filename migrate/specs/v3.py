"""Spec version 3 (API 3.0.0, ADD_VSOCK; unchanged in 4.0.0 and 5.0.0), frozen.

Version 2 with the component kind `virtio_socket`.
"""

from typing import Final

import attrs

from migrate.specs import v1, v2
from migrate.specs.version import Kind, SpecVersion
from sim_vmm.integers import U64
from sim_vmm.spec import components as machine
from sim_vmm.spec.keys import PciPath, SpecKey


@attrs.frozen(kw_only=True)
class VirtioSocket:
    guest_cid: U64
    pci_path: PciPath


Component = v1.Component | VirtioSocket


@attrs.frozen(kw_only=True)
class Document:
    """`smbios`: null or missing if unset; written as null.  Other unknown fields are ignored."""

    board: v1.Board
    components: dict[SpecKey, Component]
    smbios: v2.SmbiosType1Input | None = None


KINDS: Final = {**v1.KINDS, "virtio_socket": Kind(wire=VirtioSocket, machine=machine.VirtioSocket)}

VERSION: Final = SpecVersion(
    number=3,
    document=Document,
    kinds=KINDS,
    board=v1.BOARD,
    converter=v2.document_converter(Document, KINDS, Component),
)
