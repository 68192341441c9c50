"""``xlnet-fast info``: versions, devices, what is built or missing, which backend runs what."""

from xlnet_fast.info.facts import gather, to_json
from xlnet_fast.info.page import render

__all__ = ["gather", "render", "to_json"]
