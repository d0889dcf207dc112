"""Decision 2: may this KV be read over there, and how is it rewritten?

`gate` first (identity: no transformation helps), then `differences` by named field, then `compiler.compile_plan`.
`verdict.judge` puts the three together. Refuses to know how bytes move.
"""
