from .interface import Barrier as Barrier
from .interface import BarrierStatistics as BarrierStatistics
