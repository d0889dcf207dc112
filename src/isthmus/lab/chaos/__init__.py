"""Chaos on real processes: a gateway and workers that are killed, stopped, cut off and starved, under real load.

Every process is real, and so is every SIGKILL. What must hold is checked from outside, and by replaying the journals.
"""
