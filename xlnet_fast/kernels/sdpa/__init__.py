"""Backend ``sdpa``: plain PyTorch in bounded chunks, for any device, without an extension."""
