"""An NVMe controller with one namespace.

controller.py      the device: registers, doorbells, turns, interrupts, its state     everything below
checks.py          which state can be taken over                                      queue_set, registers
admin.py, io.py    what the commands do                                               queue_set, identify, cache
registers.py       BAR 0 below the doorbells                                          layout
queue_set.py       which queues there are                                             queues, prp
queues.py          positions of a queue, doorbell buffers                             layout
identify.py        what the controller says of itself                                 layout, prp
cache.py           the volatile write cache                                           -
prp.py             where a command's data lies                                        layout
layout.py          what both sides agree on                                           -
"""

from sim_vmm.devices.nvme.controller import Nvme

__all__ = ["Nvme"]
