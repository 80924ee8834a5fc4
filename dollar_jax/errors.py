"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake of the user's: printed as one line that names the fault and the remedy, exit status 2."""
