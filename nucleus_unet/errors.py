"""The exception for errors that a user can fix."""

import re

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that names in text output must not have.

These are line breaks, control characters that a terminal would execute, and lone surrogates, with which
Python represents file names that are not UTF-8.
"""


class NucleusError(Exception):
    """Something outside the program is wrong: a path, a file, a recipe, a server or a port.

    The message is one line for the user: what is wrong, with the offending value and path, and what
    to do. The command line prints it and exits with code 2. A flow run shows it as the reason for its
    failure. Characters that would break the line, for example of a file name, become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(UNPRINTABLE.sub(" ", message))
