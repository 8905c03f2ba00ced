"""What `make bench` measures; `python -m benchmarks --help` says how to run parts of it."""
