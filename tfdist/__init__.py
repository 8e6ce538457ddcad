"""Keeps TensorFlow parameter-server jobs from hanging, losing data and saving too early.

`__init__.pyi` lists the public names.
"""

from tfdist.lazy import public_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
