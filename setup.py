"""Builds the extension module with CMake and lays the package out.

The importable package is headrace: python/headrace plus one subpackage headrace.backends.<name> for every folder
under backends/.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Runs CMake with Ninja, and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = ROOT / "build" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        import pybind11

        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DCMAKE_BUILD_TYPE=Release",
            # Kernels for NVIDIA GPUs: on, off, or auto, which is on where there is an nvcc.
            f"-DHEADRACE_CUDA={os.environ.get('HEADRACE_CUDA', 'auto')}",
        ]
        # Tools installed into the same environment come first.
        env = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build), "--target", "headrace_extensions"], check=True, env=env)
        if self.editable_mode:  # setuptools takes what it knows from the temporary folder; _cuda is not always made
            for module in output.glob("_cuda*.so"):
                shutil.copy2(module, ROOT / "python" / "headrace")


def packages() -> tuple[list[str], dict[str, str]]:
    """The package names, and the folder each lives in."""
    names, folders = [], {"headrace": "python/headrace", "headrace.backends": "backends"}
    for base, root in (("headrace", ROOT / "python" / "headrace"), ("headrace.backends", ROOT / "backends")):
        for init in sorted(root.rglob("__init__.py")):
            parts = init.parent.relative_to(root).parts
            names.append(".".join([base, *parts]))
    return names, folders


names, folders = packages()
setup(
    name="headrace",
    version="0.1.0",
    description="A hardware-aware model serving runtime",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=names,
    package_dir=folders,
    package_data={
        "headrace": ["py.typed", "*.pyi", "**/*.html", "**/*.j2", "serving/oip.*"],
        "headrace.backends": ["**/*.cu", "**/README.md"],
    },
    ext_modules=[CMakeExtension("headrace._core")],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=["numpy>=2", "onnx>=1.19", "onnx-ir>=1.0", "ml_dtypes", "msgspec", "click", "rich"],
    extras_require={
        "serve": ["uvicorn", "uvloop", "httptools", "prometheus-client", "grpcio>=1.60", "protobuf>=4.25"],
        "ray": ["ray[serve]", "pyyaml", "prometheus-client", "grpcio>=1.60", "protobuf>=4.25"],
        "torch": ["torch", "onnxscript"],
        "triton": ["torch", "onnxscript", "triton; platform_system == 'Linux'"],
        "cupy": ["array-api-compat", "threadpoolctl", "cupy-cuda12x; platform_system == 'Linux'"],
        "plot": ["matplotlib"],
        "sklearn": ["scikit-learn", "skl2onnx"],
    },
    entry_points={
        "console_scripts": ["headrace=headrace.cli.main:main"],
    },
)
