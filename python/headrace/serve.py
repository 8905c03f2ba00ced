"""Headrace on Ray Serve: ``hr.serve.build_app(config)``, ``hr.serve.deploy(config)``. Needs the ``ray`` extra."""

from headrace.extras import needs

with needs("ray", "Ray Serve"):
    from headrace.serving.ray_build import build_app
    from headrace.serving.ray_deploy import Deployment, deploy

__all__ = ["Deployment", "build_app", "deploy"]
