"""How it is measured: presets, checks, timers, memory, results on disk, stages with a limit."""
