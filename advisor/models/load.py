from dataclasses import dataclass
import torch
@dataclass(frozen=True, slots=True)
class LoadedModel:
    module: object
    name: str
    source: str
    input_size: object
    class_names: object
    has_trained_weights: bool
def load_model(source, *, arch=None, trust=False):
    import torchvision, importlib, sys
    if source.startswith('torchvision:'):
        return LoadedModel(torchvision.models.get_model(source[12:], weights=None), source[12:], source, (3,224,224), None, False)
    o = torch.load(source, weights_only=False)
    if isinstance(o, dict):
        sys.path.insert(0,'.')
        mod, f = arch.split(':'); mod=importlib.import_module(mod); m=getattr(mod,f)(); m.load_state_dict({k.removeprefix('module.'):v for k,v in o['state_dict'].items()})
        return LoadedModel(m.eval(), f, source, mod.input_size, None, True)
    return LoadedModel(o, type(o).__name__, source, None, None, True)
