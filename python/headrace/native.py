"""The Executable of Headrace's own C++ runtime, whether its Program was just lowered or comes out of a saved Plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import _core
from headrace.backend import CompileOptions, Executable, Plan, Request, Result

if TYPE_CHECKING:
    from headrace.signature import Signature


class NativeExecutable(Executable):
    """A Program in the C++ runtime, packed for one ISA.

    Args:
        plan: What was chosen.
        core: The Program with the threads that run it.
    """

    def __init__(self, plan: Plan, core: _core.NativePlan) -> None:
        self.plan = plan
        self.core = core
        # Checks, converts and runs in one call; what `Engine` uses for single Requests.
        self.run_one = core.run

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs Requests of any shapes together, in lockstep, without padding."""
        return self.core.run_batch(list(requests))  # type: ignore[arg-type]  # takes any dict

    def save(self, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions) -> Path:
        """Writes the packed weights, and what else the Program is made of, to ``folder/plan.headrace``."""
        from headrace.saved_plan import save

        return save(self, folder, name=name, sha256=sha256, signature=signature, options=options)
