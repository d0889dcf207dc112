"""Ids, units, errors, limits and the clock. Knows nothing of KV."""
