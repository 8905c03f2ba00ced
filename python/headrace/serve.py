"""Headrace on Ray Serve: ``hr.serve.build_app(config)``, ``hr.serve.deploy(config)``. Needs the ``ray`` extra."""

from headrace.serving.ray_app import Deployment, build_app, deploy

__all__ = ["Deployment", "build_app", "deploy"]
