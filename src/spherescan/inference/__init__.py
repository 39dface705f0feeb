"""Use a trained run."""

from spherescan.inference.answers import answers
from spherescan.inference.predictor import Predictor
from spherescan.inference.stream import Prediction, Stream

__all__ = ["Prediction", "Predictor", "Stream", "answers"]
