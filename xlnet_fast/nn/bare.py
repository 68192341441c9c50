"""Whether a module may be passed over because nobody could tell.

A module's forward is passed over only if calling the module would run just that: a hook, a class of
the user's own, a forward on the instance (LoRA, quantisation, offloading, ``kernelize``) or a
compiled one is called as ever.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module
from torch.utils.module_tracker import ModuleTracker

from xlnet_fast.transforms import constant_when_traced


@constant_when_traced
def _has_own_forward(cls: type[nn.Module]) -> bool:
    """Whether a class has the forward of the file it stands in: it may have been patched."""
    forward, init = (getattr(f, "__code__", None) for f in (cls.forward, cls.__init__))
    return forward is not None and init is not None and forward.co_filename == init.co_filename


def is_bare(module: nn.Module) -> bool:
    """Whether calling a module is calling its class's own forward and nothing else."""
    return (
        _has_own_forward(type(module))
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _are_all_hooked()
        and module._compiled_call_impl is None
        and "forward" not in module.__dict__
    )


def _are_all_hooked() -> bool:
    """Whether hooks on all modules see or change what passes; those that note names do not."""
    if not _module._has_any_global_hook():
        return False
    if _module._global_backward_hooks or _module._global_backward_pre_hooks:
        return True
    hooks = (*_module._global_forward_hooks.values(), *_module._global_forward_pre_hooks.values())
    return not all(isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)
