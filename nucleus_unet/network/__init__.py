"""From arrays to a trained network, and from images to maps.

`train_network` and `predict_maps` load Keras and run in processes of their own. `write_maps`,
`resolve` and the targets do not load Keras.
"""

import lazy_loader

# Names are listed in __init__.pyi and loaded when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
