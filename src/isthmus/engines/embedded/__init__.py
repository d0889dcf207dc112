"""The embedded engine: torch and transformers' own model code around a paged pool whose representation is data.

Owns the computation: which rows a step computes, how attention reads the pool, sampling. Refuses to know who owns a
block: block ids are given to it, and it reports (`AsyncEngine.drained`) when it will not touch them again.

    config ── representation_of ──► pool ◄── attention (reads) ── cache (writes) ◄── model (transformers' code)
    request ──► scheduler ──► plan ──► engine.step ──► sampler ──► StepOutput ──► runner (its own thread)

Nothing is imported here: `config`, `request` and `engines.text` answer without torch.
"""
