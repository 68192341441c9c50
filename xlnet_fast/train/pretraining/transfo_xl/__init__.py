"""Pretraining Transformer-XL: the next token of running text, with memory carried along."""
