"""What source and target do, phase by phase: plain coroutines that await only the ports they are given."""
