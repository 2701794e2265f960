"""Batch normalization between PyTorch, Keras and ONNX: settings, statistics, weights of models."""

from .conventions import BatchNormState, options
from .keras import load_keras, to_keras
from .pytorch import load_torch, to_torch

__all__ = ["BatchNormState", "load_keras", "load_torch", "options", "to_keras", "to_torch"]
