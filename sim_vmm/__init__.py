"""The emulated virtual machine: its spec, guest memory, clock, devices and guest programs.

Nothing here knows that machines can be migrated, opens a socket or turns anything into bytes for a wire.  The layer
above (`migrate`) reads state out of a machine as plain values and gives it back.
"""
