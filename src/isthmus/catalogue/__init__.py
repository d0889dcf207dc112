"""Accelerators, models, engines and links: data with sources."""
