"""The protocol stated a second time, in TLA+, and counted by TLC: see `Handoff.tla`."""
