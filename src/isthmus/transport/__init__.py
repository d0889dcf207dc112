"""Moves bytes between named endpoints. Refuses to know tensors, digests, and what the bytes mean.

Pull: a consumer reads granted blocks out of a producer's regions into a staging buffer of its own. A peer names block
ids under a grant, never addresses. `base` holds the seams, `table` the transports that are built in, `select` the
choice between them, `faulty` a reader that goes wrong on purpose.
"""
