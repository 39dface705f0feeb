"""Use a trained run."""

from spherescan.inference.predictor import Predictor

__all__ = ["Predictor"]
