from .model import Exported as Exported
from .model import export_model as export_model
