"""From a prepared network to one file, and the proof that both compute the same."""
