"""Where arrays live, how they are allocated and how work is launched; threads and memory."""

from .arrays import *  # noqa: F403 - its `__all__`
from .sparse import CSR as CSR
from .sparse import as_csr as as_csr
