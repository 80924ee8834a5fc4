"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake of the user's: printed as one line that names the fault and the remedy, exit status 2."""


def first_line(error: object) -> str:
    """The first line of an exception's message, at most 200 characters; its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
