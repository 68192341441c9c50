"""All faults, room by room."""

from __future__ import annotations

import mutants_of_benchmarks
import mutants_of_cpp
import mutants_of_generation
import mutants_of_maths
import mutants_of_models
import mutants_of_ops
import mutants_of_sdpa
import mutants_of_speech
import mutants_of_tools
import mutants_of_training
import mutants_of_triton

FAULTS = [
    *mutants_of_maths.FAULTS,
    *mutants_of_ops.FAULTS,
    *mutants_of_sdpa.FAULTS,
    *mutants_of_models.FAULTS,
    *mutants_of_speech.FAULTS,
    *mutants_of_generation.FAULTS,
    *mutants_of_triton.FAULTS,
    *mutants_of_cpp.FAULTS,
    *mutants_of_tools.FAULTS,
    *mutants_of_training.FAULTS,
    *mutants_of_benchmarks.FAULTS,
]
