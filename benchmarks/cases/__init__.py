"""What is measured: sizes, inputs, models and batches of real text."""
