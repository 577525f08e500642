"""The one exception whose text is written for the user."""


class NucleusError(Exception):
    """Something outside the program is wrong: a path, a file, a recipe, a server, a port.

    The text is one line that names the thing, the rule it breaks and the way out; the command line
    prints it and exits with code 2, a flow run shows it as the reason of its failure.
    """
