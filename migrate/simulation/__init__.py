"""The ports of the engines in virtual time, and everything round them: two nodes, a network, disks that fail."""
