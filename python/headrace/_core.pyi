"""
The C++ runtime of Headrace. Private: use the headrace package.
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
import typing_extensions

__all__: list[str] = [
    "Mailbox",
    "MappedFile",
    "NativePlan",
    "PoolState",
    "PoolWindow",
    "Program",
    "ProgramBuilder",
    "Scheduler",
    "Signature",
    "SimulatedPool",
    "StepTime",
    "StepValue",
    "Ticket",
    "available_isas",
    "copy_bytes_per_second",
    "fingerprint",
    "fit_cost",
    "fork_join_seconds",
    "hash_bytes",
    "is_finite",
    "latency_bounds",
    "registered_ops",
    "selected_isa",
    "twofold_key",
]

class Signature:
    """
    Checks Requests against named inputs.
    """
    def __init__(
        self,
        inputs: collections.abc.Sequence[tuple[str, str, collections.abc.Sequence]],
        outputs: collections.abc.Sequence[tuple[str, str, collections.abc.Sequence]],
    ) -> None:
        """
        Each entry is (name, dtype, dims), dims being ints and symbol names.
        """
    def check(self, request: dict) -> dict:
        """
        The Request as C-contiguous numpy arrays; raises a RequestError if it does not fit.
        """
    def work(self, request: dict) -> int:
        """
        The size of a Request for the cost model: rows, tokens.
        """

class MappedFile:
    """
    A whole file in memory, read-only; processes share its pages.
    """
    def __init__(self, path: str) -> None:
        """
        Raises InvalidPlan.
        """
    def hash(
        self, offset: typing.SupportsInt | typing.SupportsIndex, length: typing.SupportsInt | typing.SupportsIndex
    ) -> int:
        """
        `hash_bytes` of a part, without the GIL.
        """
    def read(
        self, offset: typing.SupportsInt | typing.SupportsIndex, length: typing.SupportsInt | typing.SupportsIndex
    ) -> bytes:
        """
        A copy. Raises InvalidPlan.
        """
    @property
    def size(self) -> int: ...

class Program:
    """
    A finished flat list of ops. Given to one NativePlan.
    """

class ProgramBuilder:
    """
    Builds a Program in topological order.
    """
    def __init__(self, isa: str, keep_constants: bool = False) -> None:
        """
        With `keep_constants`, those that ops have packed stay, for a device that packs them in its own way.
        """
    def add_constant(self, name: str, array: typing.Any) -> int:
        """
        Returns the value's id. The array is kept only while an op reads it.
        """
    def add_input(self, name: str, dtype: str, dims: collections.abc.Sequence) -> int:
        """
        Returns the value's id.
        """
    def add_mapped_constant(
        self,
        name: str,
        dtype: str,
        dims: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        file: MappedFile,
        offset: typing.SupportsInt | typing.SupportsIndex,
    ) -> int:
        """
        A constant, not of strings, that is read where it lies in a saved Plan's file.
        """
    def add_op(
        self,
        op: str,
        name: str,
        opset: typing.SupportsInt | typing.SupportsIndex,
        attributes: collections.abc.Mapping[
            str,
            typing.SupportsInt
            | typing.SupportsIndex
            | typing.SupportsFloat
            | typing.SupportsIndex
            | str
            | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
            | collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
            | collections.abc.Sequence[str],
        ],
        inputs: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        output_names: collections.abc.Sequence[str],
        output_dtypes: collections.abc.Sequence[str],
        file: MappedFile | None = None,
        packs: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ] = [],
    ) -> list[int]:
        """
        Returns the outputs' ids. Input id -1 is an absent input, output dtype '' an output nobody wants. With a saved Plan's file, `packs` are the (offset, bytes) of what the op packed. Raises UnsupportedOp, InvalidModel or InvalidPlan.
        """
    def add_output(
        self, name: str, dtype: str, dims: collections.abc.Sequence, value: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def add_packed_constant(
        self, name: str, dtype: str, dims: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> int:
        """
        A constant of a saved Plan of which only packed memory is left.
        """
    def finish(self) -> Program:
        """
        Call once; the builder is empty afterwards.
        """

class StepValue:
    """
    A tensor that an op read or wrote.
    """
    @property
    def constant(self) -> bool: ...
    @property
    def dtype(self) -> str:
        """
        "none" for an absent optional input or output.
        """
    @property
    def shape(self) -> list[int]:
        """
        Its dims; the first Request's where Requests differ.
        """

class StepTime:
    """
    What one op of a profiled Batch took.
    """
    @property
    def inputs(self) -> list[StepValue]: ...
    @property
    def name(self) -> str:
        """
        The node's name.
        """
    @property
    def ns(self) -> int:
        """
        Nanoseconds for all Requests together.
        """
    @property
    def op(self) -> str: ...
    @property
    def outputs(self) -> list[StepValue]: ...

class NativePlan:
    """
    A Program with the threads that run it.
    """
    def __init__(self, program: Program, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Takes the program's contents.
        """
    def describe(self) -> dict[str, typing.Any]:
        """
        Values by id: the inputs; the constants (id, name, dtype, dims and data: bytes, a list of str, or None where ops have packed it); the nodes (op, name, opset, attributes, inputs, outputs as (id, name, dtype), and packs: bytes); the outputs.
        """
    def profile(self, requests: collections.abc.Sequence[dict]) -> list[StepTime]:
        """
        Runs a Batch and returns what each op took.
        """
    def run(self, request: dict) -> dict[str, numpy.ndarray]:
        """
        Runs one Request alone.
        """
    def run_batch(self, requests: collections.abc.Sequence[dict]) -> list[dict[str, numpy.ndarray]]:
        """
        Runs Requests of any shapes together, in lockstep.
        """
    @property
    def arena_bytes(self) -> int: ...
    @property
    def constant_bytes(self) -> int: ...
    @property
    def ops(self) -> list[str]: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...

class Mailbox:
    """
    Where Tickets gather when they end. One signal per Batch.
    """
    def __init__(self) -> None: ...
    def close(self) -> None:
        """
        Ends wait().
        """
    def fetch(self) -> list:
        """
        All Tickets that ended since the last call.
        """
    def wait(self) -> bool:
        """
        Blocks until there is something; False once closed and empty.
        """
    @property
    def fd(self) -> int:
        """
        Readable when there is something to fetch.
        """

class Ticket:
    """
    A submitted Request.
    """
    def attach(self, mailbox: Mailbox, target: typing.Any) -> bool:
        """
        Posts it to the mailbox when it ends; False if it has ended already.
        """
    def cancel(self) -> bool:
        """
        Takes it out of the queue; False if it runs or has ended.
        """
    def result(self, timeout_s: typing.SupportsFloat | typing.SupportsIndex | None = None) -> typing.Any:
        """
        Waits, then gives the Result or raises; TimeoutError where it takes longer.
        """
    def take_target(self) -> typing.Any:
        """
        The object given at attach, once.
        """
    @property
    def done(self) -> bool: ...
    @property
    def status(self) -> str:
        """
        waiting, running, ok, failed, expired, cancelled (by its caller) or closed (with the Batcher).
        """

class Scheduler:
    """
    The Batcher's C++ side: one thread that forms and runs Batches.
    """
    @staticmethod
    def of_function(
        run_batch: typing.Any,
        max_queue: typing.SupportsInt | typing.SupportsIndex,
        max_batch: typing.SupportsInt | typing.SupportsIndex,
        slo_s: typing.SupportsFloat | typing.SupportsIndex,
        ledger_fd: typing.SupportsInt | typing.SupportsIndex,
    ) -> Scheduler:
        """
        Runs Batches with run_batch(list of dicts) -> list of dicts. slo_s = 0 and ledger_fd = -1 for none.
        """
    @staticmethod
    def of_plan(
        plan: NativePlan,
        max_queue: typing.SupportsInt | typing.SupportsIndex,
        max_batch: typing.SupportsInt | typing.SupportsIndex,
        slo_s: typing.SupportsFloat | typing.SupportsIndex,
        ledger_fd: typing.SupportsInt | typing.SupportsIndex,
    ) -> Scheduler:
        """
        Runs Batches on a NativePlan, without Python. slo_s = 0 and ledger_fd = -1 for none.
        """
    def close(self, drain: bool) -> None:
        """
        Runs (drain) or cancels what waits; returns when all has ended. A signal handler that raises (Ctrl-C) ends the wait, not the closing.
        """
    def count_refused(self) -> None:
        """
        Enters a Request in the books that was refused before it was submitted.
        """
    def fit(
        self,
        samples: collections.abc.Sequence[
            tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
        ],
    ) -> None:
        """
        Teaches the cost model (work, seconds) pairs.
        """
    def stats(self) -> dict:
        """
        The ledger and the measurements.
        """
    def submit(
        self,
        request: dict,
        deadline_ms: typing.SupportsFloat | typing.SupportsIndex | None,
        priority: typing.SupportsInt | typing.SupportsIndex,
        caller: typing.SupportsInt | typing.SupportsIndex,
        here: bool,
    ) -> Ticket:
        """
        Checks a Request against the plan's signature and queues it, or, where it may be run here and is sooner run than handed over, runs it on this thread.
        """
    def submit_checked(
        self,
        arrays: dict,
        work: typing.SupportsInt | typing.SupportsIndex,
        deadline_ms: typing.SupportsFloat | typing.SupportsIndex | None,
        priority: typing.SupportsInt | typing.SupportsIndex,
        caller: typing.SupportsInt | typing.SupportsIndex,
    ) -> Ticket:
        """
        Queues a Request that was checked and measured.
        """

class PoolWindow:
    """
    What happened in a SimulatedPool since the last take().
    """
    @property
    def arrived(self) -> int: ...
    @property
    def batches(self) -> int: ...
    @property
    def busy_s(self) -> float: ...
    @property
    def expired(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def late(self) -> int: ...
    @property
    def latencies(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        Answers per bucket of latency, int64; latency_bounds() has the buckets.
        """
    @property
    def ok(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def replica_s(self) -> float: ...

class PoolState:
    """
    How things stand in a SimulatedPool.
    """
    @property
    def delay_high_s(self) -> float: ...
    @property
    def delay_mean_s(self) -> float: ...
    @property
    def ongoing(self) -> float: ...
    @property
    def running(self) -> int: ...
    @property
    def starting(self) -> int: ...

class SimulatedPool:
    """
    Replicas behind a load balancer, in simulated time.
    """
    def __init__(
        self,
        *,
        fixed_s: typing.SupportsFloat | typing.SupportsIndex,
        per_request_s: typing.SupportsFloat | typing.SupportsIndex,
        ratios: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
        max_batch: typing.SupportsInt | typing.SupportsIndex,
        max_queue: typing.SupportsInt | typing.SupportsIndex,
        deadline_s: typing.SupportsFloat | typing.SupportsIndex,
        objective_s: typing.SupportsFloat | typing.SupportsIndex,
        cold_start_s: typing.SupportsFloat | typing.SupportsIndex,
        held_max: typing.SupportsInt | typing.SupportsIndex,
        choices: typing.SupportsInt | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
        factors: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
        sizes: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
        ratios_of: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]] = [],
        wake_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    def advance(self, until_s: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    def offer(self, arrivals_s: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> None: ...
    def offer_poisson(
        self,
        rate_rps: typing.SupportsFloat | typing.SupportsIndex,
        until_s: typing.SupportsFloat | typing.SupportsIndex,
    ) -> int: ...
    def scale(self, target: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def start_now(self, count: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def state(self) -> PoolState: ...
    def take(self) -> PoolWindow: ...
    @property
    def now(self) -> float: ...
    @property
    def window(self) -> PoolWindow:
        """
        What take() would return now.
        """

def available_isas() -> list[str]:
    """
    The ISAs whose kernels this CPU can run, slowest first.
    """

def copy_bytes_per_second(
    threads: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    Measures copying from one buffer of `bytes` to another: bytes read plus bytes written.
    """

def fingerprint() -> str:
    """
    Names the build: a digest of the sources that decide what saved Plans mean.
    """

def fit_cost(
    runs: collections.abc.Sequence[
        tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
    ],
) -> tuple[float, float]:
    """
    The Batcher's cost model of Batches that ran: (work, seconds) each -> (fixed seconds, seconds per work).
    """

def fork_join_seconds(threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Measures what starting and ending a parallel region costs, in seconds: some milliseconds.
    """

def hash_bytes(bytes: bytes) -> int:
    """
    64 bits that any damage changes; no protection against intent.
    """

def is_finite(array: numpy.ndarray) -> bool:
    """
    Whether an array of floats of 2, 4 or 8 bytes has neither NaN nor Inf.
    """

def latency_bounds() -> numpy.typing.NDArray[numpy.float64]:
    """
    Bounds of the buckets in seconds: bucket i holds [bounds[i], bounds[i + 1]).
    """

def registered_ops() -> list[str]:
    """
    The ops the native runtime has kernels for, with the domain in front if it is not ONNX's.
    """

def selected_isa() -> str:
    """
    The ISA for new Plans: HEADRACE_ISA if set, else the fastest. Raises BackendUnavailable.
    """

def twofold_key(json: typing_extensions.Buffer) -> bytes | None:
    """
    A key that some object of a valid JSON text, in bytes, has twice; None if there is none.
    """
