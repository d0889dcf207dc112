"""`isthmus model`: prepare the packaged model."""

import sys

__all__ = ["model"]


def model() -> None:
    """De-quantise the packaged SmolLM2-135M-Instruct into the cache, once, and print where it is."""
    from isthmus.engines.embedded.prepare import prepare_smollm2
    from isthmus.serve.models import cache_folder

    sys.stdout.write(f"{prepare_smollm2(cache_folder())}\n")
