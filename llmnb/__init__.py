"""Notebooks about language models, in six chapters, and the package under them.

Importing llmnb costs nothing: every module imports what it needs itself.
"""

__version__ = "0.1.0"


class LlmnbError(Exception):
    """What a user can mend: the message says what is wrong, where, and what to do."""
