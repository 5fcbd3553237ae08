"""What can go wrong, and the exit code that follows from it.

KDError                the job failed                                     exit code 1
├── ConfigError        the config or the command line is wrong            exit code 2
├── DataError          the data cannot be used                            exit code 2
├── ModelError         a checkpoint cannot be found or used               exit code 2
├── TeacherError       the teacher cannot teach this student or task      exit code 2
├── EndpointError      a remote teacher gives no more answers             exit code 1
└── ExportError        an artifact could not be made or run               exit code 1

Exit code 2 means: found before any training, and nothing was overwritten. A message says what was
expected, what came, and what to do.
"""

from __future__ import annotations


class KDError(Exception):
    """A failure that the user is told in one message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class ConfigError(KDError):
    """The config or the command line is wrong."""

    exit_code = 2


class DataError(KDError):
    """The data set is missing, unreadable, or does not hold what the task needs."""

    exit_code = 2


class ModelError(KDError):
    """A checkpoint or tokenizer cannot be found, or its files do not fit together."""

    exit_code = 2


class TeacherError(KDError):
    """The teacher does not fit the task, the student, or is no better than chance."""

    exit_code = 2


class ExportError(KDError):
    """An artifact could not be written, or its own runtime could not run it."""

    exit_code = 2


class EndpointError(KDError):
    """A teacher that one can only ask gives no more answers for now, or its budget is used up; what was answered is kept."""
