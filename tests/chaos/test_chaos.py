"""The short form of every campaign: what must hold at any length, and on a machine that is busy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .campaigns import CAMPAIGNS


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_campaign(name: str, tmp_path: Path) -> None:
    report = asyncio.run(CAMPAIGNS[name](tmp_path, 1, 3.0))
    broken = [what for what, held in report.promises.items() if not held]
    assert not broken, report.facts
