"""What asking for a GPU says where there is none."""

from __future__ import annotations

import importlib.util

import pytest

import headrace as hr
from headrace.backends.native.cuda import usable_devices
from headrace.conformance.models import loaded
from headrace.errors import BackendUnavailable


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    devices, missing = usable_devices()
    if "cuda" not in missing:
        pytest.skip(f"this machine has {devices}")
    built = importlib.util.find_spec("headrace._cuda") is not None
    what = "nvidia-smi" if built else "HEADRACE_CUDA=on"
    assert what in missing["cuda"]
    for device in ("cuda", "cuda:0"):
        with pytest.raises(BackendUnavailable, match=what):
            loaded("mlp")[1].compile(backend="native", device=device)


def test_nothing_falls_back_to_the_cpu() -> None:
    with pytest.raises(BackendUnavailable):
        loaded("mlp")[1].compile(backend="native", device="cuda:99")
    assert hr.backends()["native"].probe().devices[0] == "cpu"
