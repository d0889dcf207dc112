"""A producer's offer."""

import numpy as np
from tests.state.states import a_state

from isthmus.core.errors import ManifestInvalid
from isthmus.state.manifest import decode_manifest, encode_manifest

REFUSALS = (ManifestInvalid,)


def seeds() -> list[bytes]:
    return [encode_manifest(a_state())]


def parse(data: bytes) -> None:
    state = decode_manifest(data)
    # What was let through can be worked with: shapes are computed from it before anything is allocated.
    for shards in state.representation.address():
        for shard in shards:
            for region in shard.regions:
                if np.sign(region.size_bytes(state.residency.num_blocks)) < 0:
                    raise ValueError("a region of negative size")
