"""Certifies backends and writes their certificates into docs/backends.md, between its markers.

    python tests/conformance/write_certificates.py native torch reference [--model FILE.onnx]...

Exits with 1 if anything failed. Backends that are not named keep the certificate they have.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from headrace.conformance import Certificate, certify
from headrace.engine import backend_named

DOCS = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
REASONS_MAX = 8


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="+")
    parser.add_argument("--model", type=Path, action="append", default=[])
    args = parser.parse_args()
    certificates = []
    for name in args.backends:
        certificates.append(certify(backend_named(name), models=args.model))
        write(certificates[-1])
    return 0 if all(certificate.ok for certificate in certificates) else 1


def write(certificate: Certificate) -> None:
    """Puts a certificate where its backend's was."""
    name, section = certificate.backend, text_of(certificate)
    page, found = re.subn(
        rf"<!-- {name} -->.*?<!-- end -->",
        lambda _: f"<!-- {name} -->\n{section}\n<!-- end -->",
        DOCS.read_text(encoding="utf-8"),
        flags=re.S,
    )
    if not found:
        raise SystemExit(f"{DOCS}: got no place for {name!r}, expected <!-- {name} --> and <!-- end -->")
    DOCS.write_text(page, encoding="utf-8")


def text_of(certificate: Certificate) -> str:
    """The certificate in Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in certificate.about.items()), ""]
    lines += ["| check | passed | failed | skipped | ops |", "|---|---|---|---|---|"]
    for name, count in certificate.counts().items():
        ops = count["ops"] or ""
        lines.append(f"| {name} | {count['passed']} | {count['failed']} | {count['skipped']} | {ops} |")
    lines += [f"| FAILED {one.subject}: {one.reason[:100]} | | | | |" for one in certificate.failed]
    reasons = [(count, reason.replace("|", "\\|")) for count, reason, _ in certificate.reasons()]
    if reasons:
        told = "; ".join(f"{count} {reason}" for count, reason in reasons[:REASONS_MAX])
        rest = sum(count for count, _ in reasons[REASONS_MAX:])
        more = f"; {rest} for {len(reasons) - REASONS_MAX} other reasons" if rest else ""
        lines += ["", f"Skipped: {told}{more}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
