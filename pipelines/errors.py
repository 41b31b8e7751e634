"""The one exception whose text is for the user."""


class UserError(Exception):
    """What the user can mend: cause and remedy in one or two lines. The command line prints it and exits with 1."""
