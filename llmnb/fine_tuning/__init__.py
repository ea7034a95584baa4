"""Your labels, your model: every sensible way to a text classifier, and an honest comparison."""

from llmnb.fine_tuning.base import FACTS, Classifier, FineTuningError, Settings, save
from llmnb.fine_tuning.ladder import METHODS, Result, load, recommend, run, trained

__all__ = [
    "FACTS",
    "METHODS",
    "Classifier",
    "FineTuningError",
    "Result",
    "Settings",
    "load",
    "recommend",
    "run",
    "save",
    "trained",
]
