"""Use a trained run."""

from spherescan.inference.decision import decide
from spherescan.inference.lines import answer_lines
from spherescan.inference.predictor import Predictor, Which
from spherescan.inference.stream import Prediction, Stream

__all__ = ["Prediction", "Predictor", "Stream", "Which", "answer_lines", "decide"]
