"""Moves bytes between named endpoints. Refuses to know tensors, digests, and what the bytes mean.

Pull: a consumer reads granted blocks out of a producer's regions into a staging image of its own. Push: a producer
writes blocks of its regions into an image that a consumer exposes. A peer names what it means under a grant, never
addresses. `base` holds the seams, `table` the transports that are built in, `select` the choice between them, `faulty`
a reader and a writer that go wrong on purpose.
"""
