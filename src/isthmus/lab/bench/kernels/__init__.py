"""`isthmus bench kernels`: what conversions cost against a copy of the same bytes, on the CPU and on a GPU.

`forms` compiles the pairs and lowers them into `cases.json`, which is all that the rest needs: so the bench runs from a
bare checkout with torch, triton and numpy (`python -m isthmus.lab.bench.kernels.run`).
"""
