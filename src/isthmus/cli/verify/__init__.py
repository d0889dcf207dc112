"""`isthmus verify`: prove the ownership protocol, by exhaustion, by simulation, by faults in real processes."""

import cyclopts

from isthmus.cli.verify.chaos import chaos
from isthmus.cli.verify.model import model
from isthmus.cli.verify.protocol import protocol
from isthmus.cli.verify.seeds import replay, seeds
from isthmus.cli.verify.tlc import tlc
from isthmus.cli.verify.trace import trace

__all__ = ["verify"]

verify = cyclopts.App(
    name="verify", help="Prove the ownership protocol: model check, seeded simulation, chaos, trace validation."
)
verify.command(model)
verify.command(chaos)
verify.command(trace)
verify.command(seeds)
verify.command(replay)
verify.command(protocol)
verify.command(tlc)
