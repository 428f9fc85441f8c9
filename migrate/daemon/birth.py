"""What a machine that is born on this host has, beside what its spec says."""

import attrs

from migrate.daemon.address import BadInput
from migrate.daemon.guests import MEMORY_MB_MAX
from sim_vmm.spec import Spec, build_spec, host_cpuid


def born(spec: Spec, memory_mb: int | None) -> Spec:
    """The spec of a machine that is born on this host: its CPUID is explicit from now on (instance-specs §5)."""
    board = spec.board if memory_mb is None else attrs.evolve(spec.board, memory_mb=memory_mb)
    if not 1 <= board.memory_mb <= MEMORY_MB_MAX:
        raise BadInput(f"{board.memory_mb} MiB of guest RAM: expected 1 to {MEMORY_MB_MAX}")
    return build_spec(board, spec.components, spec.smbios, host_cpuid=host_cpuid)
