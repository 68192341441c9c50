"""Who computes it: Hugging Face eager and compiled, ours, and the floors that leave out work."""
