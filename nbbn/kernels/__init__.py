"""Loops only: Numba kernels and the launchers that call them.

The contract of a launcher: it takes C-contiguous arrays of one floating dtype in a canonical
layout, `(M, C)` rows or `(N, C, S)` planes; inputs first, then scalars, then outputs; it fills the
outputs and returns None. It never checks, converts or allocates anything of the input's size: that
is the work of `nbbn.functional`, one floor up. Kernels accumulate in fixed blocks that follow from
the shape alone, so their bits are the same for every number of threads.
"""
