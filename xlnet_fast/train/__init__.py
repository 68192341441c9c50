"""Training XLNet on the accelerated modules: pretraining, fine-tuning, one process or several."""
