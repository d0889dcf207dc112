"""Runtime KV State: what prefill produces and decode needs, as pure data.

Identity, representation, partition, token range, residency and ownership; their wire form (`manifest`); where each
element lies (`addressing`); and the types of the plan that rewrites one representation as another (`plan`).
Refuses to know torch, sockets and engines.
"""
