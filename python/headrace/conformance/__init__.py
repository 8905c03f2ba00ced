"""What every backend promises, as checks that any installed backend can be held to.

`certify` runs them all and gives a `Certificate`; ``headrace certify NAME`` prints it. They need nothing but
Headrace's own dependencies, so that the author of a backend can run them without a checkout of Headrace.
"""

from headrace.conformance.certificate import Certificate, certify
from headrace.conformance.outcome import Outcome, Subject

__all__ = ["Certificate", "Outcome", "Subject", "certify"]
