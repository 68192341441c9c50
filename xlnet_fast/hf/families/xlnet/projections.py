"""q, k, v, o and r of the attention as ``nn.Linear`` modules, on the storage that they have.

HF keeps them as parameters (H, N, D), and einsums read them. A tool that looks for ``nn.Linear``
(LoRA, quantisation) passes them by. As modules their weights are (out, in): of q, k, v and r the
transposed view (N * D, H), of o the view (H, N * D). What is saved and loaded keeps HF's names and
shapes, as long as a projection is an ``nn.Linear``; what a tool put around it has the tool's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

PROJECTIONS = ("q", "k", "v", "o", "r")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class SavedAsParameters(nn.Module):
    """An attention layer whose ``state_dict`` is HF's, even where its projections are modules."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module``; each projection's weight as (H, N, D), by HF's name."""
        found = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        heads: Any = self.r_w_bias.shape
        for name in _linears(self):
            if _is_plain(found.get(f"{prefix}{name}.weight")):
                weight = found.pop(f"{prefix}{name}.weight")
                found[prefix + name] = _from_weight(name, weight, heads)
        return found

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As ``nn.Module``; what is missing or does not fit is told by HF's names and shapes."""
        heads: Any = self.r_w_bias.shape
        for name in _linears(self):
            key, linear = prefix + name, cast(nn.Linear, self._modules[name])
            weight: Tensor = linear.weight
            if f"{key}.weight" in state_dict:
                continue
            expected = _from_weight(name, weight, heads).shape
            given = state_dict.pop(key, None)
            if given is None:
                if strict:
                    missing_keys.append(key)
            elif given.shape == expected:
                weight = _as_weight(name, given)
            else:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {given.shape} from "
                    f"checkpoint, the shape in current model is {expected}."
                )
            state_dict[f"{key}.weight"] = weight  # itself, where there is nothing to load
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def has_modules(attention: nn.Module) -> bool:
    """Whether a projection is a module, an ``nn.Linear`` or any other."""
    return any(name in attention._modules for name in PROJECTIONS)


def why_no_modules(attention: nn.Module) -> str | None:
    """Why :func:`to_modules` cannot be had of an attention layer; None if it can."""
    for name in PROJECTIONS:
        if name in attention._modules:
            continue
        parameter = attention._parameters.get(name)
        if parameter is None:
            return f"{name} is no parameter of its own (parametrized, pruned or in a flat one)"
        if type(parameter) is not nn.Parameter:
            return f"{name} is a {type(parameter).__name__}, no plain parameter"
    return None


def why_not_alone(model: nn.Module, attentions: list[Any]) -> str | None:
    """Which projection cannot change its shape, because something else uses it too; None if none.

    Layers may share one that has the same part in each.
    """
    parts: dict[int, str] = {}
    ours = {id(attention) for attention in attentions}
    for attention in attentions:
        for name in PROJECTIONS:
            parameter = attention._parameters.get(name)
            part = "o" if name == "o" else "q, k, v and r"
            if parameter is not None and parts.setdefault(id(parameter), part) != part:
                return f"{name} is another projection as well, which has it the other way round"
    for module in model.modules():
        for name, other in module._parameters.items():
            if id(other) in parts and not (id(module) in ours and name in PROJECTIONS):
                return f"a projection is also the {name} of a {type(module).__name__}"
    return None


def why_held(attentions: list[Any], to_module: bool) -> str | None:
    """Which projection a graph or DDP expects in the shape that it has; None if none.

    Args:
        to_module: whether it is to become the weight of a module, or a parameter again.
    """
    for attention in attentions:
        for name in PROJECTIONS:
            if to_module:
                parameter, change = attention._parameters.get(name), partial(_as_weight, name)
            else:
                parameter = getattr(attention._modules.get(name), "weight", None)
                change = partial(_from_weight, name, heads=attention.r_w_bias.shape)
            changes = parameter is not None and parameter.dim() == (3 if to_module else 2)
            if changes and _is_held(parameter, change):
                return (
                    f"{name} is part of an output, a loss or a DDP that still exists and expects "
                    "its shape: delete that"
                )
    return None


def to_modules(attention: nn.Module) -> None:
    """Make an ``nn.Linear`` of each projection; the parameter stays the same object."""
    for name in PROJECTIONS:
        parameter = attention._parameters.get(name)
        if parameter is None:
            continue
        if parameter.dim() == 3:  # not one that another layer shares, and that was changed there
            _change(parameter, partial(_as_weight, name))
        out_features, in_features = parameter.shape
        module = nn.Linear(in_features, out_features, bias=False, device="meta")
        module.weight = parameter
        module.train(attention.training)
        delattr(attention, name)
        setattr(attention, name, module)


def why_no_parameters(attention: nn.Module) -> str | None:
    """Why :func:`to_parameters` would lose something; None if it would not."""
    for name in PROJECTIONS:
        if name not in attention._modules:
            continue
        module: Any = attention._modules[name]
        if type(module) is not nn.Linear:
            kind = f"{type(module).__module__}.{type(module).__name__}"
            return f"{name} is a {kind}: merge or unload what was put there"
        weight: Any = module._parameters.get("weight")
        if type(weight) is not nn.Parameter:
            return f"the weight of {name} is a {type(module.weight).__name__}, no plain parameter"
        if module._parameters.get("bias") is not None:
            return f"{name} has a bias, which Hugging Face's attention does not know"
        if "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{name} has a hook or a forward of its own: remove that"
    return None


def to_parameters(attention: nn.Module) -> None:
    """Undo :func:`to_modules`: HF's parameters in HF's shape and order."""
    if not has_modules(attention):
        return
    heads: Any = attention.r_w_bias.shape
    kept = dict(attention._parameters)
    ours: dict[str, nn.Parameter | None] = {}
    for name in PROJECTIONS:
        if name in attention._modules:
            ours[name] = _plain(name, attention._modules.pop(name), heads)
        else:
            ours[name] = kept.pop(name)
    attention._parameters.clear()  # HF's order, by which optimizers know their parameters
    attention._parameters.update(ours | kept)


def _plain(name: str, module: Any, heads: Any) -> nn.Parameter:
    """The parameter (H, N, D) of a projection."""
    parameter: nn.Parameter = module.weight
    if parameter.dim() == 2:  # not one that another layer shares, and that was changed there
        _change(parameter, lambda data: _from_weight(name, data, heads).contiguous())
    return parameter


def _linears(attention: nn.Module) -> Iterator[str]:
    """The names of the projections that are an ``nn.Linear``, with nothing around it."""
    return (name for name in PROJECTIONS if type(attention._modules.get(name)) is nn.Linear)


def _is_plain(weight: Any) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.dim() == 2


def _as_weight(name: str, parameter: Tensor) -> Tensor:
    """(H, N, D) as a weight (out, in); a view of what is contiguous, as HF's parameters are."""
    weight = parameter.flatten(1)
    return weight if name == "o" else weight.t()


def _from_weight(name: str, weight: Tensor, heads: Any) -> Tensor:
    """A weight (out, in) as (H, N, D), a view; contiguous if :func:`_as_weight` gave it."""
    return (weight if name == "o" else weight.t()).unflatten(1, heads)


def _is_held(parameter: nn.Parameter, change: Callable[[Tensor], Tensor]) -> bool:
    """Whether the node that accumulates the gradient is alive, and would refuse another shape."""
    if not parameter.requires_grad:
        return False
    grad, parameter.grad, data = parameter.grad, None, parameter.data
    try:
        with torch.no_grad():
            parameter.data = change(data)
        with torch.enable_grad():
            function: Any = parameter.view_as(parameter).grad_fn
        (accumulates,) = function.next_functions[0][0]._input_metadata
        return tuple(accumulates.shape) != tuple(parameter.shape)
    finally:
        parameter.data, parameter.grad = data, grad


def _change(parameter: nn.Parameter, change: Callable[[Tensor], Tensor]) -> None:
    """Give a parameter, and its gradient, another shape; no optimizer or hook loses sight of it."""
    grad, parameter.grad = parameter.grad, None
    with torch.no_grad():
        parameter.data = change(parameter.data)
        if grad is not None:
            parameter.grad = change(grad)
