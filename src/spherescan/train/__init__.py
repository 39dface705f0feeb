"""One run in memory: build, train, validate, save, resume."""

from spherescan.train.build import build, resume, start
from spherescan.train.evaluate import Evaluation, evaluate
from spherescan.train.objective import Objective
from spherescan.train.problem import evaluation_batches, expect_same_data, objective_of
from spherescan.train.progress import Bar, Lines, Reporter
from spherescan.train.rule import LearningRule, make_rule
from spherescan.train.schedule import learning_rate
from spherescan.train.signals import stop_on_signals
from spherescan.train.step import GroupMetrics, StepMetrics, hybrid_step
from spherescan.train.trainer import Trainer

__all__ = [
    "Bar",
    "Evaluation",
    "GroupMetrics",
    "LearningRule",
    "Lines",
    "Objective",
    "Reporter",
    "StepMetrics",
    "Trainer",
    "build",
    "evaluate",
    "evaluation_batches",
    "expect_same_data",
    "hybrid_step",
    "learning_rate",
    "make_rule",
    "objective_of",
    "resume",
    "start",
    "stop_on_signals",
]
