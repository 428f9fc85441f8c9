"""Rehearse VM live migration: two daemons, one emulated machine, and everything that can go wrong between them."""
