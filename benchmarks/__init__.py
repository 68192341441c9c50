"""Benchmarks of `xlnet_fast` against Hugging Face eager, torch.compile, SDPA and FlexAttention.

`python -m benchmarks` lists the commands of a checkout; `run` is `xlnet-fast bench` as well.
"""
