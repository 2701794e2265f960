"""The catalogue of differentiable operations: a class for each, with all its derivatives.

Classes work on arrays and know no `Tensor`; `backward_graph` is given tensors, and uses their
operators, methods and `_apply`.

Adding one: its kernels, its functions in `nbbn.functional`, a class here, its function in
`nbbn.autograd.functions`, one line in `tests/helpers/cases.py`.
Everything computed goes through `backend.run`, so that a step can be recorded and replayed.
"""
