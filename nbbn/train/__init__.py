"""Training: the loop, the recorded step, and all that goes on beside them."""

from .full_batch import Iteration, Minimized, Objective, minimize
from .loop import Epoch, Evaluation, Step, evaluate, fit, record_step
from .rates import RateTrial, find_lr

__all__ = [
    "Epoch", "Evaluation", "Iteration", "Minimized", "Objective", "RateTrial", "Step", "evaluate",
    "find_lr", "fit", "minimize", "record_step",
]  # fmt: skip
