"""`isthmus demo`: unlike workers on this machine, one real model, and the proof that the answers are the same."""
