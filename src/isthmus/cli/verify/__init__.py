"""`isthmus verify`: prove the ownership protocol, by exhaustion, by simulation, by faults in real processes."""

import cyclopts

__all__ = ["verify"]

verify = cyclopts.App(
    name="verify", help="Prove the ownership protocol: model check, seeded simulation, chaos, trace validation."
)
