"""The backends that come with Headrace; each folder is one.

``headrace.backends`` is also the function that lists the installed ones. Importing the first of them puts this package
under the same name, so the package can be called too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.backend import Backend


class _Listing(ModuleType):
    def __call__(self) -> dict[str, Backend]:
        """See `headrace.engine.backends`."""
        from headrace.engine import backends

        return backends()


sys.modules[__name__].__class__ = _Listing
