"""Fuzzing: every parser of what a peer or a file says. `fuzz/README.md` says how to run it."""
