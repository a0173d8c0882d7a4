"""What can go wrong in training, beside what `edge.errors` names already."""

from edge.errors import ConfigError, EdgeError


class RunError(ConfigError):
    """A run folder that is missing, damaged, taken, or another's."""


class TrainingError(EdgeError, RuntimeError):
    """Training stopped: out of memory, a loss that is no number, a full disk. What was trained before is kept."""
