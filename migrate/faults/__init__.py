"""Faults as values: what goes wrong when; plans of them, found by themselves, tried out, and made smaller."""
