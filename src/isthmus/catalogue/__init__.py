"""What is known of engines and models, as data with sources (`data/*.yaml`). Refuses to know how it is used.

Accelerators and links will join; a figure without a source does not.
"""
