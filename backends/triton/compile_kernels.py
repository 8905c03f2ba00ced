"""Compiles every kernel to machine code for NVIDIA GPUs of a compute capability; needs no GPU.

    TRITON_INTERPRET=0 python backends/triton/compile_kernels.py 90

Prints the name and the bytes of each.
"""

from __future__ import annotations

import argparse
from typing import Any

import triton
from headrace.backends.triton import kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_SIZES = {"epsilon": "fp32", "scale": "fp32"} | dict.fromkeys(
    ("rows", "width", "n", "k", "x_row", "weights_row", "size", "q_row", "k_row", "v_row", "heads", "group", "depth"),
    "i32",
)  # fmt: skip
_INDICES = dict.fromkeys(("q_starts", "k_starts", "mask_starts", "mask_steps"), "*i64")

# A value for every constant of a kernel, by its name.
_ROWS = {"ROWS": 8, "WIDTH": 512}
CONSTANTS: dict[str, dict[str, Any]] = {
    "_linear_kernel": {"ACTIVATION": 2, "HAS_BIAS": True, "HAS_RESIDUAL": True} | kernels.TILES[-1],
    "_norm_kernel": {"HAS_BIAS": True, "CENTRED": True} | _ROWS,
    "_softmax_kernel": _ROWS,
    "_unary_kernel": {"ACTIVATION": 3, "BLOCK": 1024},
    "_attention_kernel": {
        "HAS_MASK": True, "GUARD": True, "QUERIES": kernels.QUERIES, "KEYS": kernels.KEYS, "DEPTH": 64, "WIDTH": 64
    },
}  # fmt: skip


def compiled_bytes(name: str, capability: int) -> int:
    """The size of a kernel's machine code."""
    kernel, constants = getattr(kernels, name), CONSTANTS[name]
    if isinstance(kernel, triton.runtime.Autotuner):
        kernel = kernel.fn
    pointers = {"_norm_kernel": {"scale"}, "_attention_kernel": {"k"}}.get(name, set())
    types = {
        argument: "constexpr" if argument in constants
        else "*fp32" if argument in pointers
        else _INDICES.get(argument) or _SIZES.get(argument, "*fp32")
        for argument in kernel.arg_names
    }  # fmt: skip
    places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    warps = 8 if name == "_linear_kernel" else 4
    source = ASTSource(kernel, types, constexprs=places)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return len(built.asm["cubin"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int, help="80, 90, ...")
    capability = parser.parse_args().capability
    for name in sorted(CONSTANTS):
        print(name, compiled_bytes(name, capability))


if __name__ == "__main__":
    main()
