"""Headrace on Ray Serve: ``hr.serve.build_app(config)``, ``hr.serve.deploy(config)``. Needs the ``ray`` extra."""

from headrace.errors import BackendUnavailable

try:
    import ray.serve  # noqa: F401
except ModuleNotFoundError as error:
    raise BackendUnavailable(f"Ray Serve: got {error}, expected it installed: pip install 'headrace[ray]'") from error

from headrace.serving.ray_build import build_app
from headrace.serving.ray_deploy import Deployment, deploy

__all__ = ["Deployment", "build_app", "deploy"]
