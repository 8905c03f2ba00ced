"""Keeps what a deployment must not forget in Ray's own store, beside what Serve's controller keeps there."""

from __future__ import annotations

from ray.experimental import internal_kv

NAMESPACE = "headrace"


class RayStore:
    """Bytes by model name, for as long as the cluster's head lives; see `headrace.serving.assignment.Store`."""

    def get(self, name: str) -> bytes | None:
        """What was put for a model; None for nothing."""
        found: bytes | None = internal_kv._internal_kv_get(name, namespace=NAMESPACE)
        return found

    def names(self) -> list[str]:
        """The models that something was put for."""
        return sorted(key.decode() for key in internal_kv._internal_kv_list("", namespace=NAMESPACE))

    def put(self, name: str, content: bytes) -> None:
        """Keeps it in place of what was there."""
        internal_kv._internal_kv_put(name, content, overwrite=True, namespace=NAMESPACE)

    def delete(self, name: str) -> None:
        """Keeps nothing for a model."""
        internal_kv._internal_kv_del(name, namespace=NAMESPACE)
