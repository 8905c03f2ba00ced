"""The triton backend: Triton kernels for transformers over packed ragged Batches, torch for everything else."""
