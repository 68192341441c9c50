"""Proves the kernels on the machine that they are installed on: ``xlnet-fast qualify``.

``run`` is the parent, which starts no CUDA and survives whatever a kernel does; ``child`` is the
process that runs one backend on one device, checks it (``checks``) and times it (``timing``).
"""

from xlnet_fast.qualifier.run import Outcome, Step, qualify

__all__ = ["Outcome", "Step", "qualify"]
