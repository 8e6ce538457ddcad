"""Softmax over millions of classes, with tables that are sharded over the ps.

`__init__.pyi` lists the public names.
"""

from tfdist.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
