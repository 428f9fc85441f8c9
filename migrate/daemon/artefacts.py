"""What is left of a machine, as files that a reader who knows nothing of us can judge.

    ram              all of guest RAM, page 0 first; a sparse file
    console.json     {beginning, rolling, total_bytes}: the history of COM1, each byte as the character of its number
    <key>.blob       the bytes of each blob backend; other disks are in the storage directory already

Write them when the machine has stopped: until then its disks may hold data back.
"""

import json
from pathlib import Path

from sim_vmm.devices.blob import BlobBackend
from sim_vmm.machine import Machine
from sim_vmm.storage import file_name


def write_artefacts(machine: Machine, directory: Path) -> None:
    """Write everything into `directory`, which is made if it is not there.

    Raises:
        OSError: the host cannot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "ram").open("wb") as file:
        file.truncate(len(machine.memory.view))
        for data in machine.memory.data_ranges():
            file.seek(data.start)
            file.write(machine.memory.view[data.start : data.stop])
    state = machine.console.export()
    history = {
        "beginning": state.beginning.decode("latin-1"),
        "rolling": state.rolling.decode("latin-1"),
        "total_bytes": state.total_bytes,
    }
    (directory / "console.json").write_text(json.dumps(history))
    for key, device in machine.devices.items():
        if isinstance(device, BlobBackend):
            (directory / f"{file_name(key)}.blob").write_bytes(device.read(0, len(device)))
