"""Every error that sacglam raises on purpose. Messages say what was given, what is needed, and
what to do."""

from __future__ import annotations


class SacglamError(Exception):
    """Base of all errors raised by sacglam; catch this to catch them all."""


class ConfigError(SacglamError, ValueError):
    """A configuration value is out of range, unknown, or contradicts another one."""


class UnknownEnvironmentError(SacglamError, ValueError):
    """No environment is registered under the given id."""


class EnvironmentProtocolError(SacglamError, ValueError):
    """An environment broke a rule of the text-environment protocol."""


class EnvironmentWorkerError(SacglamError, RuntimeError):
    """A process that runs environments died, hung, or met an error in one."""


class UnknownModelError(SacglamError, ValueError):
    """A model id or folder could not be found or loaded."""


class UnsupportedModelError(SacglamError, ValueError):
    """A model has a part that packed scoring cannot compute correctly."""


class CandidateError(SacglamError, ValueError):
    """A candidate list is empty, holds duplicates, or holds an empty text; or a prompt is none."""


class PromptTooLongError(SacglamError, ValueError):
    """A prompt, with its longest candidate, exceeds what the model accepts."""


class RunFolderError(SacglamError, OSError):
    """A run's folder already exists, is missing, or is not one."""


class CheckpointError(SacglamError, OSError):
    """A checkpoint is damaged, foreign, or of an incompatible version."""


class ReplayError(SacglamError, ValueError):
    """The replay buffer was given data that it cannot store or sample."""


class DivergedError(SacglamError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the run was saved and stopped."""


class DeviceMemoryError(SacglamError, RuntimeError):
    """The GPU's memory ran out; the run was saved and stopped."""


class MissingDependencyError(SacglamError, ImportError):
    """An optional package is needed for what was asked."""
