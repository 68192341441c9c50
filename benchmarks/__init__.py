"""Benchmarks of `xlnet_fast` against Hugging Face eager, torch.compile, SDPA and FlexAttention.

Run from a checkout as `python -m benchmarks.run`, or after installing as `xlnet-fast bench`.
"""
