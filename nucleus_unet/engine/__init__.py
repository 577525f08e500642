"""How work runs: the home, cached stages, processes for Keras, stopping, servers and progress."""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
