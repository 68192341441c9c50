"""XLNet's attention on TPUs: PyTorch programs take the Pallas kernels by way of JAX.

:func:`register` is for torchax, and :func:`data_parallel` for training there on several TPUs;
:mod:`xlnet_fast.tpu.torchtpu` is for TorchTPU. JAX (extra ``tpu``) is imported when one of them is
called.
"""

from xlnet_fast.tpu import torchtpu
from xlnet_fast.tpu.torchax import register
from xlnet_fast.tpu.training import data_parallel

__all__ = ["data_parallel", "register", "torchtpu"]
