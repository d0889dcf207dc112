"""One hand-off, top to bottom: `handoff.hand_off` awaits the stages in order.

`stages` are its types: each stage takes the previous one's frozen value, so the order is type-checked. `producer` and
`consumer` are the two sides; `seams` is what an engine implements. Refuses to know everything else's insides.
"""
