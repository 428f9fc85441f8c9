"""A whole migration as an experiment: two daemon processes, a machine, and an audit that trusts neither."""
