"""What a family of models is to ``accelerate``, ``restore`` and ``explain``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from xlnet_fast.hf.adoption import adopt, laid_over, original_class, why_kept
from xlnet_fast.hf.options import Options
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.speech_attention import MOST_HEAD_DIM
from xlnet_fast.ops._dispatch import usual_features


@dataclass(frozen=True)
class Description:
    """What ``explain`` is told of one family's part of a model.

    Attributes:
        accelerated: whether anything of it is.
        example: a module whose first parameter tells device and dtype.
        backend: as in ``accelerate``. ops: those that it calls. head_dim: of its attention.
        features: of an op's calls, in training or not (``ops.qualification.record.CLASSES``).
        own_code: every part that runs Hugging Face's or the user's own code, and why, in sentences.
        in_part: that in one short clause, "" where there is none.
        notes: what else a user should know.
    """

    accelerated: bool
    example: nn.Module
    backend: str = "auto"
    ops: tuple[str, ...] = ()
    head_dim: int = 64
    features: Callable[[str, bool], Iterable[str]] = usual_features
    own_code: tuple[str, ...] = ()
    in_part: str = ""
    notes: tuple[str, ...] = ()


class Family(ABC):
    """Models whose classes one module of transformers, or another package, defines.

    Attributes:
        title: its name for users.
    """

    title: str

    @abstractmethod
    def is_in(self, model: nn.Module) -> bool:
        """Whether there is something in a model that ``accelerate`` can take, or must explain."""

    @abstractmethod
    def accelerate(self, model: nn.Module, options: Options) -> None:
        """Adopt what is to be; what was adopted before takes the new options."""

    def why_not_restored(self, module: nn.Module) -> str | None:
        """What would be lost if an adopted module were given back; None if nothing."""
        return None

    def release(self, module: nn.Module) -> None:  # noqa: B027  # most have nothing to undo
        """Undo what ``accelerate`` did to a module beside its class and its options."""

    @abstractmethod
    def describe(self, model: nn.Module) -> Description:
        """What ``explain`` tells of it."""


@dataclass(frozen=True)
class Part:
    """A class of Hugging Face's and the accelerated one that takes its place.

    Attributes:
        kind: what it is, for users: "attention", "feed-forward block".
        methods: those that ``fast`` replaces; a module that has one of its own keeps it.
        why_not: why a module as it is configured keeps Hugging Face's code, None if it need not.
    """

    base: type[nn.Module]
    fast: type[nn.Module]
    kind: str = "attention"
    methods: tuple[str, ...] = ("forward",)
    why_not: Callable[[Any], str | None] = lambda module: None

    def of(self, module: nn.Module) -> Part | None:
        """This part, if a module is of its class."""
        return self if isinstance(module, self.base) else None


@dataclass(frozen=True)
class NamedPart:
    """A part of a package that need not be installed: its class is known by name.

    Attributes:
        name: of the class, in whatever module.
        mixin: our methods, which are laid over a class of that name when one is met.
        why_not: why a class or a module of that name is none of ours, or keeps its code.
    """

    name: str
    mixin: type[nn.Module]
    why_not: Callable[[type, Any], str | None]
    kind: str = "attention"
    methods: tuple[str, ...] = ("forward",)

    def of(self, module: nn.Module) -> Part | None:
        """The part that a module is of, if a class of this name is among its classes."""
        for cls in (original_class(module) or type(module)).__mro__:
            if cls.__name__ == self.name and not cls.__module__.startswith("transformers."):
                fast = laid_over(self.mixin, cls)
                return Part(cls, fast, self.kind, self.methods, partial(self.why_not, cls))
        return None


def why_not_head_dim(dim: int) -> str | None:
    """Why heads of this width are not ours; None if they are."""
    if dim <= MOST_HEAD_DIM:
        return None
    return f"its head dim is {dim}, and we take at most {MOST_HEAD_DIM}"


class FamilyOfParts(Family):
    """A family of which single modules are replaced, each by itself; all else is Hugging Face's.

    Args:
        parts: the attention first. A module is that of the first part whose base it is of.
        head_dim_of: the head dim of an attention module.
        ops: that the parts call. auto_ops: those of backend "auto", where they differ.
        features: as in :class:`Description`. notes: what a user should know of every model.
        dropout: the name of an attention's module that Hugging Face's code calls on probabilities,
            "" where there is none.
    """

    def __init__(
        self,
        title: str,
        parts: tuple[Part | NamedPart, ...],
        head_dim_of: Callable[[Any], int],
        ops: tuple[str, ...] = ("rel_attention",),
        auto_ops: tuple[str, ...] | None = None,
        features: Callable[[str, bool], Iterable[str]] | None = None,
        dropout: str = "dropout",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.title, self.parts = title, parts
        self._head_dim_of, self._ops, self._notes = head_dim_of, ops, notes
        self._auto_ops, self._dropout = ops if auto_ops is None else auto_ops, dropout
        self._features = features or _features_of_speech

    def part_of(self, module: nn.Module) -> Part | None:
        """The part that a module is, None where it is none."""
        found = (part.of(module) for part in self.parts)
        return next((part for part in found if part is not None), None)

    def is_in(self, model: nn.Module) -> bool:
        """Whether a module is one of the parts."""
        return any(self.part_of(module) is not None for module in model.modules())

    def accelerate(self, model: nn.Module, options: Options) -> None:
        """Adopt every part in whose way nothing stands."""
        for module in model.modules():
            part = self.part_of(module)
            if part is None:
                continue
            if original_class(module) is None and _why_own_code(part, module) is None:
                adopt(module, part.fast)
            if original_class(module) is not None:
                module.__dict__["_xlnet_fast_options"] = options

    def describe(self, model: nn.Module) -> Description:
        """Its parts, those that keep their code by the reason."""
        found = [(self.part_of(module), module) for module in model.modules()]
        parts = [(part, module) for part, module in found if part is not None]
        adopted = [module for _, module in parts if original_class(module) is not None]
        reasons: dict[tuple[str, str], int] = {}
        for part, module in parts:
            why = _why_own_code(part, module)
            if why is None and adopted and original_class(module) is None:
                why = "it was put there since; call accelerate() again"
            if why is not None:
                reasons[part.kind, why] = reasons.get((part.kind, why), 0) + 1
        attentions = [module for part, module in parts if part.kind == "attention"]
        notes = (*self._notes, *_dropouts(attentions, self._dropout)) if adopted else ()
        example = (attentions or [module for _, module in parts])[0]
        options = vars((adopted or [example])[0]).get("_xlnet_fast_options", Options())
        own_code = tuple(
            f"the {kind} of {count} of {_of_kind(parts, kind)} modules keeps its own code: {why}"
            for (kind, why), count in reasons.items()
        )
        return Description(
            accelerated=bool(adopted), example=example, backend=options.backend,
            ops=self._auto_ops if options.backend == "auto" else self._ops,
            head_dim=self._head_dim_of(attentions[0]) if attentions else 64,
            features=self._features, own_code=own_code,
            in_part=own_code[0] if own_code else "", notes=notes,
        )  # fmt: skip


def _why_own_code(part: Part, module: nn.Module) -> str | None:
    return why_kept(module, part.base, part.methods) or part.why_not(module)


def _of_kind(parts: list[tuple[Part, nn.Module]], kind: str) -> int:
    return sum(part.kind == kind for part, _ in parts)


def _dropouts(attentions: list[nn.Module], name: str) -> Iterable[str]:
    """That the dropout of probabilities is a module that must be called."""
    dropouts = [m for a in attentions if isinstance(m := getattr(a, name, None), nn.Module)]
    if any(rate_of(module) is None for module in dropouts):
        yield (
            "the dropout of attention is no bare nn.Dropout, or drops everything: Hugging Face's "
            "code calls it, on probabilities that are made in full"
        )


def _features_of_speech(op: str, training: bool) -> Iterable[str]:
    """Of encoders without segments, whose table has no row for the distance J."""
    return ("padding", "start", "dropout") if training else ("padding", "start")


def place_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where and in what dtype a module computes; one without parameters, by PyTorch's defaults."""
    parameter = next(module.parameters(), torch.empty(0))
    kind = parameter.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return parameter.device, torch.get_autocast_dtype(kind)
    return parameter.device, parameter.dtype
