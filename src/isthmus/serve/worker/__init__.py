"""Prefill and decode workers: an engine, its ledger, its transports, and the channels to gateway and peers."""
