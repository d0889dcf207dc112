"""Nobody chooses whom others connect to: a worker registers itself, where it is, and nowhere else."""

import msgspec
import pytest

from isthmus.core.errors import NotAuthorised
from isthmus.serve.config import parse_config
from isthmus.serve.gateway.addresses import Addresses
from isthmus.serve.messages import Member
from isthmus.serve.processes import this_process
from isthmus.state.partition import Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import PeerId, ShmEndpoint, TcpEndpoint
from tests.state.states import GROUP, IDENTITY

CONFIG = parse_config(
    {
        "tls": "insecure",
        "pools": [
            {"name": "prefill", "role": "prefill", "host": "10.0.0.5", "advertised_host": "prefill.cluster.local"},
            {"name": "decode", "role": "decode"},
        ],
    },
    where="test",
)
ADDRESSES = Addresses(CONFIG)
LIFE = "a" * 32
PEER = PeerId(worker="elastic-0", incarnation=LIFE)


def member(**changes):
    fields = {
        "worker": "elastic-0",
        "incarnation": LIFE,
        "role": "prefill",
        "process": this_process(),
        "identity": IDENTITY,
        "representation": KVRepresentation(groups=(GROUP,), partition=Partition(tp_size=2)),
        "num_blocks": 8,
        "context_length": 512,
        "host": "10.0.0.9",
        "port": 7000,
        "transports": ("tcp",),
        "endpoints": (TcpEndpoint(host="10.0.0.9", port=7001, peer=PEER),),
    }
    return Member(**fields | changes)


def test_a_worker_may_be_where_it_connects_from():
    ADDRESSES.check(member(), "10.0.0.9")
    ADDRESSES.check(member(host="127.0.0.1", endpoints=()), "127.0.0.1")
    ADDRESSES.check(member(host="localhost", endpoints=()), "::1")


def test_a_worker_may_be_where_the_deployments_file_says():
    for host in ("10.0.0.5", "prefill.cluster.local"):
        ADDRESSES.check(member(worker="prefill-0", host=host, endpoints=()), "192.168.7.7")


@pytest.mark.parametrize(
    ("changes", "remote", "field"),
    [
        ({"host": "169.254.169.254"}, "10.0.0.9", "member.host"),
        ({"host": "metadata.internal"}, "10.0.0.9", "member.host"),
        ({"host": "127.0.0.1"}, "10.0.0.9", "member.host"),
        ({"host": "10.0.0.9", "endpoints": ()}, "127.0.0.1", "member.host"),
        ({"host": ""}, "", "member.host"),
        (
            {"endpoints": (TcpEndpoint(host="10.0.0.1", port=22, peer=PEER),)},
            "10.0.0.9",
            "member.endpoints[0].host",
        ),
        (
            {
                "endpoints": (
                    TcpEndpoint(host="10.0.0.9", port=1, peer=msgspec.structs.replace(PEER, worker="decode-0")),
                )
            },
            "10.0.0.9",
            "member.endpoints[0]",
        ),
        (
            {"endpoints": (ShmEndpoint(host="0" * 32, pid=1, fd=3, stamp="0" * 32),)},
            "10.0.0.9",
            "member.endpoints[0].pid",
        ),
        # another worker's names are no help
        ({"host": "prefill.cluster.local", "endpoints": ()}, "10.0.0.9", "member.host"),
    ],
)
def test_a_worker_that_leads_its_peers_elsewhere_is_refused(changes, remote, field):
    with pytest.raises(NotAuthorised) as refused:
        ADDRESSES.check(member(**changes), remote)
    assert refused.value.field == field
