"""What a command exits with."""

from __future__ import annotations

from vecmill.core import errors

OK = 0
COULD_NOT_RUN = 1
USAGE = 2
FAILED_ROWS = 3
PARKED = 4
INTERRUPTED = 130

EXIT_CODES: dict[type[errors.Error], int] = {
    errors.Error: COULD_NOT_RUN,
    errors.InputError: COULD_NOT_RUN,
    errors.DimensionMismatchError: COULD_NOT_RUN,
    errors.UnknownNameError: COULD_NOT_RUN,
    errors.TextTooLongError: COULD_NOT_RUN,
    errors.SpaceMismatchError: COULD_NOT_RUN,
    errors.ConfigError: COULD_NOT_RUN,
    errors.MissingExtraError: COULD_NOT_RUN,
    errors.MissingKeyError: COULD_NOT_RUN,
    errors.ProviderError: COULD_NOT_RUN,
    errors.AuthenticationError: COULD_NOT_RUN,
    errors.RateLimitError: PARKED,
    errors.QuotaExhaustedError: PARKED,
    errors.UnavailableError: COULD_NOT_RUN,
    errors.RefusedError: COULD_NOT_RUN,
    errors.BadReplyError: COULD_NOT_RUN,
    errors.StorageError: COULD_NOT_RUN,
    errors.CorruptFileError: COULD_NOT_RUN,
    errors.FormatVersionError: COULD_NOT_RUN,
    errors.WriteError: COULD_NOT_RUN,
    errors.JobError: COULD_NOT_RUN,
    errors.BudgetReachedError: PARKED,
}
"""What a command exits with when it raises; a test holds this table complete. 3 is a job's own outcome."""


def exit_code(error: errors.Error) -> int:
    """Return what a command exits with when it raises this error."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
