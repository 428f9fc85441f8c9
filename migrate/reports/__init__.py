"""What happened, to look at: pages, traces for a trace viewer, and timelines in text, all made of plain values."""
