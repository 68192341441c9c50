"""XLNet's attention on TPUs: PyTorch programs take the Pallas kernels by way of JAX.

:func:`register` is for torchax; :mod:`xlnet_fast.tpu.torchtpu` is for TorchTPU. JAX is imported
when one of them is called (extra ``tpu``).
"""

from xlnet_fast.tpu.torchax import register

__all__ = ["register"]
