"""A family that the installed version of its package is too old for: it keeps all of its code."""

from __future__ import annotations

from torch import nn

from xlnet_fast.hf.families.family import Description, Family
from xlnet_fast.hf.options import Options


class Kept(Family):
    """Its module is not imported, for it may name classes that are not there yet.

    Args:
        title: of the family. why: it is kept, in half a sentence.
    """

    def __init__(self, title: str, why: str) -> None:
        self.title, self._why = title, why

    def is_in(self, model: nn.Module) -> bool:
        """A class of its was found already."""
        return True

    def accelerate(self, model: nn.Module, options: Options) -> None:
        """Change nothing."""

    def describe(self, model: nn.Module) -> Description:
        """That it is not accelerated, and why."""
        sentence = f"{self.title} keeps its own code: {self._why}"
        return Description(accelerated=False, example=model, own_code=(sentence,))
