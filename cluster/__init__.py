"""On a cluster: submits the project's commands as Ray jobs. Starts commands, and imports nothing of the rest."""


class UserError(Exception):
    """What the user can mend: cause and remedy in one or two lines. The command line prints it and exits with 1."""
