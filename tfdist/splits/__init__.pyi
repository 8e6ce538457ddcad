from .batches import SplitBatches as SplitBatches
from .queue import Split as Split
from .queue import SplitQueue as SplitQueue
from .queue import SplitReport as SplitReport
from .scheduler import SplitScheduler as SplitScheduler
