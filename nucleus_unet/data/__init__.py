"""From files to arrays.

Raw data sets are read in place (`open_raw`), decoded and merged into a store (`prepare_images`,
`prepare_labels`), grouped by slide and split into training and validation. Masks, run-length
encoding, the built-in sample, downloads and checks belong here too.
"""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
