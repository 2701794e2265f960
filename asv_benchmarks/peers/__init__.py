"""The contenders of compare.py, one file each, all with the same two functions.

`bn(kind, shape, axis, **options)` and `step(sizes, batch, **options)` make the inputs and return a
function without arguments that does the work once and waits for its result. `kind` is "forward"
(batch statistics), "inference" or "backward". `VERSIONS` says what runs. Those that have them also
time normalizations of each example by itself, `norms(kind, norm, shape, groups, **options)`.
"""
