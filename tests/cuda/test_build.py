"""What the build makes of the nvcc that it finds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# csrc/cuda's own script, with a compiler that is not there and a project to build that records what is asked of it.
SCRIPT = """
set(CMAKE_CUDA_COMPILER nvcc)
set(CMAKE_CUDA_COMPILER_VERSION {version})
set(HEADRACE_CUDA {wanted})
set(HEADRACE_PYTHON ON)
set(CMAKE_SOURCE_DIR {root})
foreach(command enable_language file add_library set_target_properties target_compile_definitions target_link_libraries)
  cmake_language(EVAL CODE "macro(${{command}})\nendmacro()")
endforeach()
macro(pybind11_add_module)
  message(STATUS "builds _cuda")
endmacro()
macro(target_compile_options target)
  message(STATUS "options: ${{ARGN}}")
endmacro()
include({root}/csrc/cuda/CMakeLists.txt)
"""


def configure(folder: Path, version: str, wanted: str) -> subprocess.CompletedProcess[str]:
    script = folder / "configure.cmake"
    script.write_text(SCRIPT.format(version=version, wanted=wanted, root=ROOT), encoding="utf-8")
    # As in setup.py, the one of the same environment first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    assert cmake is not None
    return subprocess.run(
        [cmake, "-P", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def test_an_old_nvcc_that_nobody_asked_for_does_not_end_the_build(tmp_path: Path) -> None:
    done = configure(tmp_path, "11.8.89", "auto")
    assert done.returncode == 0, done.stdout
    assert "nvcc 11.8.89 is older than 12.0" in done.stdout
    assert "builds _cuda" not in done.stdout


def test_an_old_nvcc_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    done = configure(tmp_path, "11.8.89", "on")
    assert done.returncode != 0
    assert "got nvcc 11.8.89, expected 12.0 or later" in " ".join(done.stdout.split())


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_warnings_are_errors_only_where_cuda_was_asked_for(tmp_path: Path, wanted: str) -> None:
    done = configure(tmp_path, "12.4.131", wanted)
    assert done.returncode == 0, done.stdout
    assert "builds _cuda" in done.stdout
    assert ("-Werror=all-warnings" in done.stdout) == (wanted == "on")
