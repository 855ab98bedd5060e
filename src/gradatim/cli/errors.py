"""Errors that are the user's to mend: one line, exit code 2."""


class UsageError(Exception):
    """Bad input or options; the message is one line that names the value and the fix."""
