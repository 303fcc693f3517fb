"""pointadapt: adapt pretrained point-cloud models to your own scans by training under 2 % of the parameters."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# Must be set before torch starts OpenMP (libgomp). By default its threads spin for milliseconds at every barrier, and
# on a machine that is busy with anything else the many small steps of a sparse convolution get 10 to 100 times slower.
# Not to spin at all costs a quiet machine more than the second thread brings; a short spin has neither fault.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

#: Public name -> the module that has it, imported when the name is first used: ``import pointadapt`` costs nothing.
PUBLIC = {
    "Point": "pointadapt.point",
    "UserError": "pointadapt.errors",
    "load_backbone": "pointadapt.backbones.weights",
    "Segmentation": "pointadapt.tasks.segmentation",
    "Classification": "pointadapt.tasks.classification",
    "PartSegmentation": "pointadapt.tasks.parts",
    "VideoClassification": "pointadapt.tasks.video",
    "ActionSegmentation": "pointadapt.tasks.action_segmentation",
    "VideoSegmentation": "pointadapt.tasks.video_segmentation",
    "Tokens": "pointadapt.tokens",
    "adapt": "pointadapt.methods.core",
    "GEMConfig": "pointadapt.methods.gem",
    "PointTPAConfig": "pointadapt.methods.pointtpa",
    "VPTConfig": "pointadapt.methods.prompts",
    "PrefixConfig": "pointadapt.methods.prompts",
    "IDPTConfig": "pointadapt.methods.idpt",
    "DAPTConfig": "pointadapt.methods.dapt",
    "SSFConfig": "pointadapt.methods.ssf",
    "AdaptFormerConfig": "pointadapt.methods.adaptformer",
    "PointGSTConfig": "pointadapt.methods.pointgst",
    "PointLoRAConfig": "pointadapt.methods.pointlora",
    "PointPEFTConfig": "pointadapt.methods.pointpeft",
    "GAPromptConfig": "pointadapt.methods.gaprompt",
    "APPTConfig": "pointadapt.methods.appt",
    "PointATAConfig": "pointadapt.methods.pointata",
    "STAdapterConfig": "pointadapt.methods.st_adapter",
    "BottleneckConfig": "pointadapt.methods.adapters",
    "BitFitConfig": "pointadapt.methods.adapters",
    "LinearConfig": "pointadapt.methods.adapters",
    "DecoderConfig": "pointadapt.methods.adapters",
    "FullConfig": "pointadapt.methods.adapters",
    "LoraConfig": "pointadapt.methods.from_peft",
    "ConvLoraConfig": "pointadapt.methods.convlora",
    "VeraConfig": "pointadapt.methods.from_peft",
    "RandLoraConfig": "pointadapt.methods.from_peft",
    "DataSet": "pointadapt.data.scans",
    "read_scan": "pointadapt.data.io",
    "ObjectSet": "pointadapt.data.object_set",
    "ObjectItems": "pointadapt.data.objects",
    "collate_objects": "pointadapt.data.objects",
    "open_dataset": "pointadapt.data.open",
    "VideoSet": "pointadapt.data.video_set",
    "VideoItems": "pointadapt.data.videos",
    "collate_videos": "pointadapt.data.videos",
    "read_shape": "pointadapt.data.object_files",
    "few_shot": "pointadapt.data.episodes",
    "subset": "pointadapt.data.episodes",
    "corrupt": "pointadapt.data.corruptions",
    "corruption_scores": "pointadapt.data.corruption_scores",
    "Run": "pointadapt.run",
    "train": "pointadapt.train",
    "evaluate": "pointadapt.evaluate",
    "pool": "pointadapt.evaluate",
    "predict": "pointadapt.predict",
}
__all__ = [*PUBLIC, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'pointadapt' has no attribute {name!r}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


class _Package(ModuleType):
    """Importing ``pointadapt.train`` makes Python set the attribute ``train`` to the module; keep the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in PUBLIC and PUBLIC[name] == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
