"""Numba kernels: serial, nogil, cached functions on plain arrays.

They import numpy and numba alone, take C-contiguous arrays and scalars, and know nothing of threads: callers spread
rows over a pool. Kernels that call each other live in one file, because numba's cache does not follow imports.
"""
