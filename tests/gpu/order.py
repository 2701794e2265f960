"""`schedule(order)` of the engine that runs the kernels: the simulator's, or the interpreter's."""

from nbbn.kernels._cuda_lanes import SIMULATED

if SIMULATED:
    from engine import schedule
else:
    from ptx_engine import schedule

__all__ = ["schedule"]
