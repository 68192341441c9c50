"""The adapters on the toolkits' own classes, where they are installed; the oracle is ours."""

from __future__ import annotations

import pytest
from toolkit_calls import KITS, Kit, hold


@pytest.mark.parametrize("kit", KITS.values(), ids=KITS)
@pytest.mark.parametrize("masks", ["", "padding", "padding any"])
def test_real_class(kit: Kit, masks: str) -> None:
    there = pytest.importorskip(kit.place)
    hold(kit, masks, theirs=kit.real(there))
