"""The callback through which OpenBLAS runs its jobs on Numba's threads; see `nbbn.threads`."""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from ._cache import KernelCache
from ._jit import parallel_function

# By symbol: numba's own functions are called by address, which no cache can store.
_get_num_threads = types.ExternalFunction("get_num_threads", types.intp())
_set_num_threads = types.ExternalFunction("set_num_threads", types.void(types.int32))


@intrinsic
def _call_job(typing_context, job, number, data, extra):
    """job(number, data, extra) for the address of a C function `void (int, void *, int)`."""
    signature = types.void(types.intp, types.int32, types.intp, types.int32)

    def generate(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        c_type = ir.FunctionType(ir.VoidType(), [ir.IntType(32), pointer, ir.IntType(32)])
        job, number, data, extra = args
        function = builder.inttoptr(job, c_type.as_pointer())
        builder.call(function, [number, builder.inttoptr(data, pointer), extra])
        return context.get_dummy_value()

    return signature, generate


@parallel_function
def _run_jobs(job, count, size, data, extra):
    """Call job(i, data + i * size, extra) for i in 0..count - 1, all at the same time."""
    # Every job gets a thread of its own, whatever the caller's mask says: they wait for each other.
    before = _get_num_threads()
    _set_num_threads(np.int32(count))
    for i in prange(count):
        _call_job(job, np.int32(i), data + i * size, extra)
    _set_num_threads(np.int32(before))


def _run(sync, job, count, size, data, extra):
    """Run jobs 0..count - 1, `size` bytes of arguments each, and return when all are done."""
    _run_jobs(job, np.int64(count), np.int64(size), data, extra)


def _compile():
    # numba.cfunc would compile in every process: its cache cannot be replaced by ours.
    arguments = (types.int32, types.intp, types.int32, types.uintp, types.intp, types.int32)
    options = {"nopython": True}
    callback = CFunc(_run, (arguments, types.void), {}, options)
    callback._cache = KernelCache(_run, options)
    callback.compile()
    return callback


run_jobs = _compile()
