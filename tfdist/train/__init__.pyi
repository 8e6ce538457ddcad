from .checkpoint import Checkpointer as Checkpointer
from .epoch import Epoch as Epoch
from .epoch import EpochResult as EpochResult
from .epoch import EpochStatus as EpochStatus
