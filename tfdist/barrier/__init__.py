"""A barrier across machines, with the interface of `threading.Barrier`; its state is on a ps.

`__init__.pyi` lists the public names.
"""

from tfdist.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
