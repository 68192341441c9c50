"""What pretraining and fine-tuning share: Trainer, checkpoints, run folder, options, tokenizers."""
