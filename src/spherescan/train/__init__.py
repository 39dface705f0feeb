"""One run in memory: build, train, validate, save, resume."""

from spherescan.train.build import ResumeOptions, build, fork, resume, start
from spherescan.train.evaluate import Evaluation, evaluate, score_text
from spherescan.train.objective import Objective
from spherescan.train.problem import evaluation_batches, expect_same_data, objective_of
from spherescan.train.progress import Bar, Lines, Reporter
from spherescan.train.rule import LearningRule, make_rule
from spherescan.train.schedule import learning_rate
from spherescan.train.signals import Signals, stop_on_signals
from spherescan.train.step import GroupMetrics, StepMetrics, hybrid_step
from spherescan.train.trainer import Trainer
from spherescan.train.verify import Verified, verify

__all__ = [
    "Bar",
    "Evaluation",
    "GroupMetrics",
    "LearningRule",
    "Lines",
    "Objective",
    "Reporter",
    "ResumeOptions",
    "Signals",
    "StepMetrics",
    "Trainer",
    "Verified",
    "build",
    "evaluate",
    "evaluation_batches",
    "expect_same_data",
    "fork",
    "hybrid_step",
    "learning_rate",
    "make_rule",
    "objective_of",
    "resume",
    "score_text",
    "start",
    "stop_on_signals",
    "verify",
]
