"""``xlnet-fast check``: every backend that can run here against Hugging Face's code."""

from xlnet_fast.check.run import check_model, run_check
from xlnet_fast.check.trial import Verdict

__all__ = ["Verdict", "check_model", "run_check"]
