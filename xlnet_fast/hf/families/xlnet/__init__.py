"""Hugging Face's XLNet on the ops: the first of the families."""

from xlnet_fast.hf.families.xlnet.family import FAMILY

__all__ = ["FAMILY"]
