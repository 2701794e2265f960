"""Training: the loop, the recorded step, and all that goes on beside them."""

from .loop import Epoch, Evaluation, Step, evaluate, fit, record_step

__all__ = ["Epoch", "Evaluation", "Step", "evaluate", "fit", "record_step"]
