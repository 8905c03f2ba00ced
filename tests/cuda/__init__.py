"""The native backend on CUDA devices: on the host, in tests, and on a real GPU (``python -m tests.cuda``)."""
