"""From predicted maps to nuclei: separating them, scoring them, and writing them to files."""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
