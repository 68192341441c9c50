"""The report on the GPU kernels, Triton's and those of CUDA C++, compiled without a GPU.

`triton.py` and `cuda.py` say what to compile and how, and give rows (`rows.py`), of which the check
and the tables (`tables.py`) are one for both. What a compiler left is read by `sass.py` (machine
code), `ptx.py` (order of accesses in PTX) and `usage.py` (registers and spills). `tile_search.py`
finds Triton's tiles by the same rows; `command.py` is `xlnet-fast kernels-report`.

No kernel and no op imports this package: what it takes is not loaded until it is asked for.
"""
