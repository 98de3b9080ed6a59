"""The exception tree. A user meets every one of these as one sentence and an exit code, never as a traceback.

* FedlearnError
  x ConfigError           2  what the user gave is wrong: a key, a type, a range, a file, a combination
    + DataError           2  the holder's records cannot be used; told to the holder alone
  x RefusedError          3  a policy or a privacy budget says no
    + BudgetExceededError 3  the release would pass the budget of the data set
  x RunFailedError        4  the run could not finish; its folder is intact
  x ProtocolError         -  a peer's message is malformed or out of turn; the peer gets the constant refusal
"""

__all__ = [
    "BudgetExceededError",
    "ConfigError",
    "DataError",
    "FedlearnError",
    "ProtocolError",
    "RefusedError",
    "RunFailedError",
]


class FedlearnError(Exception):
    """Base of all errors that fedlearn raises on purpose. `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(FedlearnError):
    """What the user gave cannot work; the sentence says where, what was expected, what came and what to do."""

    exit_code = 2


class DataError(ConfigError):
    """The holder's records are unusable. Names row and column, so it is shown to the holder and to nobody else."""


class RefusedError(FedlearnError):
    """A policy forbids the release."""

    exit_code = 3


class BudgetExceededError(RefusedError):
    """The release would pass the data set's privacy budget; no record was read."""


class RunFailedError(FedlearnError):
    """The run could not finish. What it released counts as spent; the run folder can be resumed or read."""

    exit_code = 4


class ProtocolError(FedlearnError):
    """A peer sent something malformed or out of turn. The reason stays here; the peer sees only a refusal."""
