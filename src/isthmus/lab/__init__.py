"""Measuring and proving: the demo now; profile, bench, verify campaigns and study later."""
