"""The torch backend: the optimised graph executed with torch ops, on a CPU or a CUDA device."""
