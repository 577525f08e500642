"""What people look at: scores, tables, pictures, the model card, and the choice of the champion."""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
