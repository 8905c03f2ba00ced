"""The native backend: Headrace's own C++ runtime and kernels."""
