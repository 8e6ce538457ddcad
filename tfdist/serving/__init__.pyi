from .build import SOURCES as SOURCES
from .build import build_server as build_server
from .process import ModelServer as ModelServer
from .verify import Verified as Verified
from .verify import verify_model as verify_model
