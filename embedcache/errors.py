"""Every error that a user can cause, by name.

Each message says what is wrong, where, what was expected and how to mend it. The jobs print the
message alone and exit with code 2; what only the project can cause is an `assert` and exits with
code 1 and a traceback.
"""

from collections.abc import Sequence


class UserError(Exception):
    """Base of everything that the user's input, files or machine can cause; jobs turn it into exit
    code 2.
    """


class ConfigError(UserError):
    """A config file or a `--set` has an unknown key, a value of the wrong type, or values that
    contradict each other.
    """


class TableError(UserError):
    """The table breaks its config; the message lists all violations at once, with counts and row
    numbers, and `violations` has them one by one.
    """

    def __init__(self, message: str, violations: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


class SplitError(UserError):
    """The rows cannot be split as asked (too few groups, one class only, a group without rows)."""


class EncoderError(UserError):
    """The encoder folder is missing, incomplete, or not what the config says."""


class TokenizerError(EncoderError):
    """The tokenizer does not give the published ids, or a string is longer than the encoder's
    positions.
    """


class CorpusError(UserError):
    """A file of strings to pre-train on cannot be read, made or used as asked."""


class CacheError(UserError):
    """Base of what can be wrong with a cache."""


class MissingCacheError(CacheError):
    """There is no complete cache at the path."""


class StaleCacheError(CacheError):
    """The cache was built from another table, config, encoder or tokenizer than this run uses."""


class CorruptCacheError(CacheError):
    """A chunk of the cache is missing or its bytes changed; the message names the array and the
    chunk.
    """


class BusyCacheError(CacheError):
    """Another process is building this cache."""


class RankError(UserError):
    """A process that shares a build or a run ended before its work was done."""


class RunError(UserError):
    """A run folder is missing, incomplete, or belongs to another config or cache."""


class BusyRunError(RunError):
    """Another process trains in this run folder."""


class UnobservedTaskError(UserError):
    """A task was read for which the table has no labels; it was not trained and its value is not
    invented.
    """


class NonFiniteLossError(UserError):
    """The loss or a gradient became NaN or infinite; the message names the step and the rows."""


class ServiceError(UserError):
    """The service cannot be started here, or not at the address that was asked for."""


class OutputError(UserError):
    """What a command is to write cannot be written where it was asked for."""


class DesignError(UserError):
    """Nothing can be designed from the table as asked, or a design is not inside of its bounds."""


class NonFinitePredictionError(UserError):
    """A prediction or a reward is NaN or infinite; the message names the rows and what is large in
    them.
    """


class ProofError(UserError):
    """A training did not compute what it should: its recomputation, or the count of its rows, found
    otherwise; the software, a library or the machine is at fault.
    """


class UnfinishedStepError(RuntimeError):
    """A step of the live encoder was left without sending its gradient back to the encoder."""
