"""Isthmus: the boundary layer of heterogeneous prefill-decode LLM inference. Start at ARCHITECTURE.md."""

__version__ = "0.1.0"
