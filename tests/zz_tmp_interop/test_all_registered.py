import importlib, pkgutil
import attn_flax.models as M
for info in pkgutil.iter_modules(M.__path__):
    mod = importlib.import_module("attn_flax.models." + info.name)
    M.MODELS.update(getattr(mod, "MODELS", {}))
from tests.interop.test_timm_networks import *
