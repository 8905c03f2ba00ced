"""The cupy backend: the optimised graph over the Python array API, on a CUDA device or, where there is none, numpy."""
