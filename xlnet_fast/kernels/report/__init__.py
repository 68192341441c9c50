"""The report on the kernels, compiled without a GPU or a TPU: Triton, CUDA C++ and Pallas.

`triton.py`, `cuda.py` and `pallas.py` say what to compile and how, and give rows (`rows.py`), of
which the check and the tables (`tables.py`) are one for all. What a compiler left is read by
`sass.py` (machine code), `ptx.py` (order of accesses in PTX), `usage.py` (registers and spills) and
`tpu.py` (programs of XLA). `tile_search.py` finds Triton's tiles by the same rows; `command.py` is
`xlnet-fast kernels-report`.

No kernel and no op imports this package: what it takes is not loaded until it is asked for.
"""
