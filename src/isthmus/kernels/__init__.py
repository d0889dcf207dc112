"""Executing transformation plans: the NumPy `reference` is the definition, torch is what runs.

Also logical digests (content hashed by logical position, so that layout, block size and sharding do not matter) and
`binding`, which ties a plan to two block tables. Refuses to know why a conversion is wanted.
"""
