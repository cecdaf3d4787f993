"""Errors that a user can act on: one clear sentence each, and an exit code of their own."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where, what was expected, what to do."""

    exit_code = 2
    word = "error"
    """How its line begins."""


class AuditError(UserError):
    """A result broke a property that it must have (outside the ball, NaN, changed model state)."""

    exit_code = 4


class DivergenceError(UserError):
    """Training diverged and the bounded retries are used up."""

    exit_code = 3


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C reached a long run, which wrote a checkpoint; ``code`` is the exit status."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
