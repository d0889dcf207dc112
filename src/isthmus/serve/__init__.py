"""Processes that run: gateway, prefill workers, decode workers, from one YAML file. Refuses to know kernels."""
