from . import data as data
from . import splits as splits
from . import testing as testing
from . import train as train
from .barrier.interface import Barrier as Barrier
from .cluster.local import LocalCluster as LocalCluster
from .cluster.local import local_cluster as local_cluster
from .cluster.server import parameter_server as parameter_server
from .cluster.server import run_task as run_task
from .cluster.server import worker_server as worker_server
from .diagnosis.watchdog import Watchdog as Watchdog
from .errors import BarrierError as BarrierError
from .errors import BarrierTimeout as BarrierTimeout
from .errors import BrokenBarrierError as BrokenBarrierError
from .errors import ClusterError as ClusterError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import EpochError as EpochError
from .errors import RunTimeout as RunTimeout
from .errors import SplitLostError as SplitLostError
from .errors import StallError as StallError
from .errors import StartTimeout as StartTimeout
from .errors import TaskFailed as TaskFailed
from .errors import TfdistError as TfdistError
from .runs.progress import Progress as Progress
from .task import Task as Task

__version__: str
