"""What MLflow holds: runs, their records, models and the registry. Only this folder imports MLflow."""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
