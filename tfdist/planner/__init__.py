"""What a model and its training need: parameters, memory, compute, traffic, time and cost.

`__init__.pyi` lists the public names. Nothing here imports TensorFlow until `plan_keras` is used.
"""

from tfdist.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
