"""Training: the loop, the recorded step, and all that goes on beside them."""

from .loop import Epoch, Evaluation, Step, evaluate, fit, record_step
from .rates import RateTrial, find_lr

__all__ = [
    "Epoch", "Evaluation", "RateTrial", "Step", "evaluate", "find_lr", "fit", "record_step",
]  # fmt: skip
