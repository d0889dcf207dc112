"""The hand-off protocol, pure: states, events, effects, one `step` for each side, and the table of drain evidence.

    source.step(state, event) -> (state, effects)
    destination.step(state, event) -> (state, effects)

Nothing here reads a clock, draws a number, or changes anything.
"""
