"""Right before fast: the Requests that candidates are compared on, the right answers, and who gives them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from headrace.errors import BackendUnavailable, HeadraceError
from headrace.parity import DEFAULT_TOLERANCE, Parity, compare
from headrace.planner.requests import representative

if TYPE_CHECKING:
    from headrace.backend import Request, Result
    from headrace.engine import Engine
    from headrace.model import Model
    from headrace.planner.space import Candidate

# fp32 differs from the reference by the order of its sums.
_TOLERANCE_FP32 = 1e-3


class Answers:
    """The answers that candidates must give.

    Args:
        model: What they run.
        given: Requests of the real traffic; None to make some.
        dims: Lengths of symbolic dims of those that are made.
        tolerance: The largest error; None for 0.02 in lower precisions and 0.001 in fp32.
        seconds_max: What the reference backend, which is slow, may take for all of them.

    Attributes:
        requests: The Requests; none before the first Engine was there to try them.
        samples: Where they come from, for people.
        dims: Lengths of symbolic dims, of Requests that were made.
        reference: Who said what is right.
    """

    def __init__(
        self,
        model: Model,
        given: Sequence[Request] | None,
        dims: Mapping[str, int] | None,
        tolerance: float | None,
        seconds_max: float,
    ) -> None:
        self.requests: list[Request] = []
        self.samples = ""
        self.dims: dict[str, int] | None = None
        self.reference = ""
        self._model = model
        self._given, self._given_dims = given, dims
        self._tolerance = tolerance
        self._seconds_max = seconds_max
        self._expected: list[Result] = []

    def prepare(self, engine: Engine, candidate: Candidate) -> None:
        """Has everything there; with the first Engine, which must be able to run the Requests.

        Raises:
            ParityError: There are no samples, and the Model runs none of those that were made.
            BackendUnavailable: The reference backend cannot say what is right, and neither can the first Engine.
        """
        if not self.requests:
            self.requests, self.samples, self.dims = representative(engine, self._given, self._given_dims)
            self._expected = self._of_reference(engine, candidate)

    def compare(self, engine: Engine) -> Parity:
        """How far an Engine's answers are from the right ones.

        Raises:
            ParityError: An output's shape or dtype differs.
        """
        return compare(engine.run_batch(self.requests), self._expected)

    def refusal(self, candidate: Candidate, parity: Parity) -> str:
        """Why answers as far off as `parity` will not do; empty if they will."""
        tolerance = self._tolerance
        if tolerance is None:
            tolerance = DEFAULT_TOLERANCE if candidate.lowered else _TOLERANCE_FP32
        if parity.error <= tolerance:
            return ""
        return (
            f"parity failed: error {parity.error:.2g} in output {parity.output!r} against {self.reference}, "
            f"tolerance {tolerance:g}"
        )

    def _of_reference(self, engine: Engine, candidate: Candidate) -> list[Result]:
        """The reference backend's Results or, where that is too slow or lacks an op, the first Engine's."""
        deadline = time.monotonic() + self._seconds_max
        try:
            with self._model.compile(backend="reference") as reference:
                executable = cast(Any, reference.executable).inner
                found = [executable.run_until(reference.check(one), deadline) for one in self.requests]
            self.reference = "the reference backend"
            return found
        except HeadraceError as error:
            if candidate.lowered:
                raise BackendUnavailable(
                    f"model {self._model.name!r}: the reference backend cannot say what is right ({error}), and no "
                    "candidate in fp32 can: expected one to compare the others with"
                ) from error
            reason = str(error).splitlines()[0][:120]
            self.reference = f"{candidate.backend} in fp32 (the reference backend: {reason})"
            return engine.run_batch(self.requests)
