"""The exception for errors that a user can fix."""


class NucleusError(Exception):
    """Something outside the program is wrong: a path, a file, a recipe, a server or a port.

    The message is one line for the user: what is wrong, with the offending value and path, and what
    to do. The command line prints it and exits with code 2. A flow run shows it as the reason for its
    failure.
    """
