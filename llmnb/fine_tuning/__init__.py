"""Your labels, your model: every sensible way to a text classifier, and an honest comparison."""

from llmnb.fine_tuning.classifier import (
    Classifier,
    FineTuningError,
    Settings,
    check_folder,
    load,
    save,
)
from llmnb.fine_tuning.ladder import METHODS, Result, run, trained

__all__ = [
    "METHODS",
    "Classifier",
    "FineTuningError",
    "Result",
    "Settings",
    "check_folder",
    "load",
    "run",
    "save",
    "trained",
]
