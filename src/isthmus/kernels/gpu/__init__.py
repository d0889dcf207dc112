"""Plans executed on the GPU, in Triton: one launch for all layers, heads and tokens of what is stored alike.

Where Triton is told to interpret (TRITON_INTERPRET=1) the same kernels run on the CPU, slowly, which is how their
logic is tested without a GPU.
"""
