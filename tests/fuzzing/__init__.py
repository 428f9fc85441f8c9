"""Hostile input for everything that reads what a peer sent: targets, mutation, what counts as a finding.

    limits          what no input may do, and how that is measured
    targets         functions of bytes that raise only on a finding, one for each thing that reads
    conversations   the real engines against a peer that says whatever the bytes say
    mutation        seeded chance: structured and unstructured damage to valid input
    seeds           valid input to begin with, and the findings that are run again for ever
    __main__        the same targets under atheris, for as long as told

`make test` runs 200,000 inputs that are the same every time (tests/test_fuzzing.py), `make fuzz` looks for new ones.
"""

NAMES = ("frame", "image", "payload", "spec", "source", "target")
"""The targets; here, so that they can be named before anything that is to be instrumented has been imported."""
