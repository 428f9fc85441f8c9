"""The conversation between source and target: messages, frames, and the table of legal moves.  No I/O."""
