"""Whole models on the ops, which transformers no longer has."""
