"""The glue between this package's methods and Hugging Face peft; from_peft.py alone knows peft as well.

A method is a config under ``@peft_method("name")`` that makes its adapters, and adapters that are plain modules:

    @peft_method("scaled")
    @dataclass
    class ScaledConfig(AdapterConfig):
        target_modules: list[str] = field(default_factory=lambda: ["ffn"])

        def adapter(self, frozen, site, shared):
            return Scale(width(frozen))          # an Adapter: forward(base, point) -> what stands in for base(point)

What peft's defaults get wrong for adapters with inner modules, and what is therefore done here instead, is in
the comments; every override is held by the contract suite (tests/contracts.py).
"""

from __future__ import annotations

import copy
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import Field, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal, cast

import peft
import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from peft.utils.integrations import init_empty_weights
from peft.utils.other import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapter import Adapter, Shared, at_least, one_of  # noqa: F401  (methods take them from here)
from pointadapt.methods.sites import (
    Site,
    bare,
    below,
    check_names,
    find_sites,
    in_decoder,
    leaves,
    matches,
    plain_modules,
    trained_parts,
)
from pointadapt.ops.batchnorm import keep_still

#: Method name -> config class; each file of this folder adds its own.
METHODS: dict[str, type[PeftConfig]] = {}
#: What most methods need of a backbone.
NEEDS_TRANSFORMER = "blocks of attention and feed-forward branches, which a convolutional network does not have"


def check_kind(config: Any, name: str, model: Any) -> None:
    """Raise UserError when the model's backbone is of a kind that the method ``name`` does not work on.

    Configs that do not say (those of peft itself) are asked nothing.
    """
    backbone = getattr(model, "backbone", model)
    if getattr(backbone, "kind", "points") not in getattr(config, "works_on", (getattr(backbone, "kind", "points"),)):
        raise UserError(f"method {name!r} cannot work on {type(backbone).__name__}: it needs {config.needs}")


class Recorded(PeftConfig):
    """Mixin for configs: the backbone's name goes into adapter_config.json, without peft asking the hub about it.

    peft looks for ``<base_model_name_or_path>/config.json`` on the hub whenever it saves and the name is known
    beforehand. It also fills the name in at the end of saving; so the name is kept only for the file.
    """

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, **kwargs)
        self.base_model_name_or_path = None


@dataclass
class AdapterConfig(Recorded):
    """What every method of this package can be told."""

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Slots of the backbone that get an adapter (cpe, attn, ffn, ...), or regular expressions matched "
            "against the end of module names. Default: the method's own."
        },
    )
    targets: Literal["encoder", "all"] = field(
        default="encoder", metadata={"help": "encoder: leave decoder blocks alone; all: adapt them."}
    )
    stages: list[int] | None = field(
        default=None, metadata={"help": "Only these stages, counted from 0 at full resolution. Default: all."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules to train in full and to save with the adapter. Default: the head, and parts of the "
            "backbone that no checkpoint filled."
        },
    )

    #: Where it was published; empty for what needs no paper.
    paper: ClassVar[str] = ""
    #: Name given by peft_method; children of the backbone that the method trains in full; slots if none are asked for.
    method: ClassVar[str]
    trains: ClassVar[tuple[str, ...]] = ()
    default_targets: ClassVar[tuple[str, ...]] = ()
    #: Kinds of backbones it works on (Backbone.kind), and the reason told where it does not.
    works_on: ClassVar[tuple[str, ...]] = ("points", "tokens")
    needs: ClassVar[str] = NEEDS_TRANSFORMER
    #: Slot -> the one that takes its place in backbones that do not have it.
    stand_ins: ClassVar[dict[str, str]] = {}
    #: Whether the adapted model computes exactly what the plain one does until it is trained.
    identity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(self.method.upper())
        one_of("targets", self.targets, ("encoder", "all"))
        if self.target_modules is None:
            self.target_modules = list(self.default_targets)
        elif isinstance(self.target_modules, str):
            self.target_modules = [self.target_modules]

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        """The entry of ``target_modules`` that a module of the encoder (or decoder) matches, or None."""
        return next((slot for slot in self.target_modules or () if matches(name, slot, slots)), None)

    def prepare(self, model: Any) -> None:
        """Called with the plain model before anything is put in place; may choose what a new head reads.

        Raises UserError for a backbone that the method cannot work on.
        """
        check_kind(self, self.method, model)
        slots = getattr(getattr(model, "backbone", model), "slots", {})
        targets = [t if t in slots else self.stand_ins.get(t, t) for t in self.target_modules or ()]
        self.target_modules = list(dict.fromkeys(targets))
        self.choose_read(model)

    def choose_read(self, model: Any) -> None:
        """Tell the task what its head is to read: the field ``read`` if the method has one."""
        read = getattr(self, "read", None)
        if read and hasattr(model, "read_from"):
            model.read_from(read)

    def shared(self, sites: list[Site]) -> nn.Module | None:
        """What exists once per adapter, not once per site."""
        return None

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        raise NotImplementedError(f"{type(self).__name__} makes no adapters")

    def counts(self, model: nn.Module, adapter_name: str) -> dict[str, int | float]:
        """What ``print_trainable_parameters`` says beyond one figure, of the model with that adapter in place."""
        return {}


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Takes the place of a frozen module: ``base_layer`` and, under ``<method>_adapter``, its adapters by name."""

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.slot = f"{prefix}adapter"  # peft looks for the prefix in keys
        self.adapter_layer_names = (self.slot,)
        setattr(self, self.slot, nn.ModuleDict())
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.unmerged: dict[str, Tensor] = {}

    @property
    def adapters(self) -> nn.ModuleDict:
        return self._modules[self.slot]  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        """Attributes of the frozen module (``channels``, ``in_features``) stay readable."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call: Callable = self.base_layer
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.adapters and name not in self.merged_adapters:
                    call = partial(self.adapters[name], call)  # an onion: each adapter calls the one below
        return call(*args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' deltas to the frozen parameters; the originals are kept for :meth:`unmerge`."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.adapters:
                continue
            for parameter_name, delta in (cast(Adapter, self.adapters[name]).deltas(self.base_layer) or {}).items():
                parameter = self.base_layer.get_parameter(parameter_name)
                merged = parameter.detach() + delta.to(parameter)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"adapter {name!r} holds NaN or infinite values; not merged")
                self.unmerged.setdefault(parameter_name, parameter.detach().clone())
                parameter.data.copy_(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the original frozen parameters back, bit by bit."""
        for name, original in self.unmerged.items():
            self.base_layer.get_parameter(name).data.copy_(original)
        self.unmerged, self.merged_adapters = {}, []

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft's version reads base_layer.weight, which a branch does not have, and casts to its type.
        if adapter_name in self.adapters:
            move(self.adapters[adapter_name], device or device_of(self.base_layer))


def device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """To ``device``, unless the module is still without values (meta)."""
    return module if any(p.is_meta for p in module.parameters()) else module.to(device)


class Tuner(BaseTuner):
    """Puts ``config.adapter(...)`` at every site and holds ``config.shared()`` once per adapter name."""

    prefix: str
    tuner_layer_cls = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (peft's own attribute)
    uses_shared_state = True

    @property
    def store(self) -> nn.ModuleDict:
        """What adapters share, by adapter name; peft saves and loads it like VeRA's projections."""
        key = f"{self.prefix}shared"
        if key not in self._modules:
            self.add_module(key, nn.ModuleDict())
        return self._modules[key]  # type: ignore[return-value]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Build all adapters, then put them in place.

        peft's own loop skips what lies below a module it has wrapped, so that ``attn`` and ``attn.qkv`` could not
        both be adapted, and a second adapter would miss the inner one. Nothing is changed in the model when a check
        or a config fails.
        Raises UserError for targets that do not exist and for adapter names that would lose weights on save.
        """
        if state_dict is not None:
            raise NotImplementedError(f"{type(self).__name__} finds its targets by its config, not by a state dict")
        config: AdapterConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        config.base_model_name_or_path = None  # see Recorded
        config.prepare(model)
        modules = plain_modules(model)
        others = [cast(Any, c).modules_to_save for name, c in self.peft_config.items() if name != adapter_name]
        if config.modules_to_save is None and any(others):  # a further adapter brings a head of its own, too
            config.modules_to_save = list(next(filter(None, others)))
        elif config.modules_to_save is None and not config.target_modules:
            config.modules_to_save = trained_parts(model, config.trains)
        config.modules_to_save = leaves(modules, config.modules_to_save or []) or None
        sites = find_sites(model, modules, config)
        context: Any = init_empty_weights if low_cpu_mem_usage else nullcontext
        with context():
            shared = config.shared(sites)
            reference = Shared(self.store, adapter_name)
            built = [(site, config.adapter(bare(modules[site.name]), site, reference)) for site in sites]
        check_names(adapter_name, self.prefix, modules, [a for _, a in built])

        is_first = not any(isinstance(m, AdapterLayer | AuxiliaryTrainingWrapper) for m in model.modules())
        trainable = [] if is_first else [(p, p.requires_grad) for p in self.parameters()]
        if shared is not None:
            self.store[adapter_name] = move(shared, device_of(model))
        for site, adapter in built:
            parent, _, child = site.name.rpartition(".")
            self._create_and_replace(
                config, adapter_name, modules[site.name], child, modules[parent], site.name, adapter=adapter
            )
        self.targeted_module_names += [s.name for s in sites if s.name not in self.targeted_module_names]

        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        for parameter, requires_grad in trainable:  # a further adapter changes nothing about those present
            parameter.requires_grad = requires_grad
        keep_still(model)

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None, adapter=None
    ) -> None:
        layer = target
        if not isinstance(target, AdapterLayer):
            layer = AdapterLayer(target, self.prefix)
            layer.train(target.training)
            setattr(bare(parent), target_name, layer)
        adapter.adapter_name = adapter_name
        layer.adapters[adapter_name] = move(adapter, device_of(layer.base_layer)).train(layer.training)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config

    def train(self, mode: bool = True) -> Tuner:
        super().train(mode)
        keep_still(self.model)
        return self

    # ------------------------------------------------------------------ shared modules follow their adapter

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, shared in self.store.items():
            shared.requires_grad_(name in active and not inference_mode)

    def set_requires_grad(self, adapter_names, requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.store:
                self.store[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        for name, shared in self.store.items():
            shared.requires_grad_(enabled and name in self.active_adapters)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete one adapter; if it was the only active one, the first of the others takes over (with a warning).

        peft finds the adapter that stays active by asking a tuner layer, and deactivates the head of methods
        without any (linear probe, full fine-tuning).
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        if any(adapter_name in layer.merged_adapters for layer in self.layers()):
            raise ValueError(f"Adapter {adapter_name} is merged: unmerge it before deleting it")
        del self.peft_config[adapter_name]
        was_active = adapter_name in self.active_adapters
        active = [name for name in self.active_adapters if name != adapter_name]
        if not active and self.peft_config:
            active = sorted(self.peft_config)[:1]
            warnings.warn(f"Adapter {adapter_name} was active and is deleted; {active[0]} is active now.", stacklevel=3)
        if was_active and active:
            self.set_adapter(active)
        for layer in self.layers():
            layer.delete_adapter(adapter_name)
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.delete_adapter(adapter_name, new_active_adapters=active)
        if adapter_name in self.store:
            del self.store[adapter_name]
        self.active_adapter = active

    def layers(self) -> Iterator[AdapterLayer]:
        return (m for m in self.model.modules() if isinstance(m, AdapterLayer))

    # ------------------------------------------------------------------ leaving peft again

    def _check_merge_allowed(self) -> None:
        """All or nothing: ask every adapter before the first weight is touched."""
        for layer in self.layers():
            for adapter in layer.adapters.values():
                if cast(Adapter, adapter).deltas(layer.base_layer) is None:
                    raise NotImplementedError(
                        f"{type(adapter).__name__} cannot be merged into the frozen weights: its output is not a "
                        "linear function of what one frozen module sees. Keep the adapter, or unload() to drop it."
                    )

    def _unload_and_optionally_merge(  # type: ignore[override]  # peft's annotation says None
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        # peft's version copies .weight onto whatever it unwraps, and does not look inside wrapped modules.
        if merge:
            self._check_merge_allowed()
        for name, module in reversed(list(self.model.named_modules())):  # inner modules first
            parent, _, child = name.rpartition(".")
            if isinstance(module, AdapterLayer):
                if merge:
                    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                setattr(self.model.get_submodule(parent), child, module.base_layer)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                trained = module.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
                setattr(self.model.get_submodule(parent), child, trained)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    # ------------------------------------------------------------------ keys in files

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft removes the name only from the last or last but one place of a key.
        return re.sub(rf"(\.{cls.prefix}(?:adapter|shared))\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key, count=1)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict) -> dict[str, Tensor]:
        """As peft, but a file that lacks tensors, or has others, is an error and not a warning."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        known = set(model.state_dict())
        own = rf"\.{cls.prefix}(adapter|shared)\.{re.escape(adapter_name)}(\.|$)"
        missing = sorted(k for k in known if re.search(own, k) and k not in remapped)
        unknown = sorted(set(remapped) - known)
        if missing or unknown:
            raise UserError(
                f"the adapter file does not fit this model: {len(missing)} tensors missing"
                f"{f' (first {missing[0]})' if missing else ''}, {len(unknown)} unknown"
                f"{f' (first {unknown[0]})' if unknown else ''}; load it onto the backbone it was trained on"
            )
        return remapped


def register_peft_type(name: str) -> PeftType:
    """Add a member to peft's closed enum of methods; peft has no third-party door (peft issue 2273)."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType(name)


def peft_method(name: str, prefix: str | None = None) -> Callable[[type], type]:
    """Class decorator: make the config's method known to peft as ``name`` (upper case in adapter_config.json).

    prefix  start of the names of its modules, ``<name>_`` if not given
    """
    prefix = prefix or f"{name}_"

    def register(config_cls: type) -> type:
        config_cls.method = name  # type: ignore[attr-defined]
        module = sys.modules[config_cls.__module__]
        tuner = type(f"{config_cls.__name__}Tuner", (Tuner,), {"prefix": prefix, "__module__": module.__name__})
        setattr(module, tuner.__name__, tuner)  # so that models can be pickled
        register_peft_type(name.upper())
        register_peft_method(name=name, config_cls=config_cls, model_cls=tuner, prefix=prefix)
        return config_cls

    return register


def options(config_cls: type) -> list[Field]:
    """The fields of a method's config that a user sets, each with ``metadata["help"]``; peft's own are left out."""
    own = {
        name
        for c in config_cls.__mro__
        if c.__module__.startswith("pointadapt.")
        for name in vars(c).get("__annotations__", {})
    }
    return [f for f in fields(config_cls) if f.name in own and "help" in f.metadata]


def resolve(model: nn.Module, modules: dict[str, nn.Module], config: Any) -> None:
    """Replace slot names in a peft config's ``target_modules`` by the full names of the modules they stand for."""
    wanted = getattr(config, "target_modules", None)
    slots = getattr(getattr(model, "backbone", model), "slots", {})
    if isinstance(wanted, str) or not wanted or not set(wanted) & set(slots):
        return
    found = [
        name
        for name in modules
        if any(matches(name, slot, slots) for slot in wanted)
        and not (getattr(config, "targets", "all") == "encoder" and in_decoder(name))
        and not below(name, config.modules_to_save or ())
    ]
    if not found:
        raise UserError(f"no module of the backbone matches target_modules={sorted(wanted)}; slots: {', '.join(slots)}")
    config.target_modules = found


class Adapted(PeftModel):
    """A PeftModel whose ``print_trainable_parameters`` also says what the active method counts."""

    def print_trainable_parameters(self) -> None:
        super().print_trainable_parameters()
        counts = getattr(self.peft_config[self.active_adapter], "counts", None)
        found = counts(self, self.active_adapter) if counts else {}
        if found:
            print(" || ".join(f"{k}: {v:,d}" if isinstance(v, int) else f"{k}: {v:.2f}" for k, v in found.items()))


def adapt(model: nn.Module, config: Any, adapter_name: str = "default") -> PeftModel:
    """``peft.get_peft_model`` for a task model: frozen backbone + adapters + trained head.

    model   a task model (``.backbone``, ``.head``), changed in place, or a bare backbone
    config  one of METHODS, or any peft config; slot names in its ``target_modules`` are resolved. It is copied.
    Fresh parts of the backbone (a decoder that no checkpoint filled) are trained in full as well.
    Raises UserError when nothing matches the targets, or the head would stay frozen.
    """
    if isinstance(model, PeftModel):
        raise UserError("this model is adapted already: add a further adapter with model.add_adapter(name, config)")
    config = copy.deepcopy(config)
    check_kind(config, getattr(config, "method", config.peft_type.lower()), model)
    modules = plain_modules(model)
    if config.modules_to_save is None:
        config.modules_to_save = trained_parts(model, getattr(config, "trains", ()))
    config.modules_to_save = leaves(modules, config.modules_to_save) or None
    if not isinstance(config, AdapterConfig):
        resolve(model, modules, config)
        check_names(adapter_name, f"{config.peft_type.lower()}_", modules, [])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*should not be contained in the prefix.*")
        adapted = peft.get_peft_model(model, config, adapter_name=adapter_name)
    adapted.__class__ = Adapted
    config.base_model_name_or_path = None  # see Recorded
    keep_still(model)
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and not any(p.requires_grad for p in head.parameters()):
        raise UserError(f"the head is not trained: put 'head' into modules_to_save (it is {config.modules_to_save})")
    return adapted


def load_adapted(
    model: nn.Module, folder: str | os.PathLike, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """``PeftModel.from_pretrained`` on a plain model, with this package's methods known to peft.

    Raises UserError when the folder holds no adapter, or one of another backbone or class list.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(f"{folder} holds no adapter: {name} is missing; give the folder that save_pretrained wrote")
    adapted = Adapted.from_pretrained(model, os.fspath(folder), adapter_name=adapter_name, is_trainable=trainable)
    adapted.peft_config[adapter_name].base_model_name_or_path = None  # see Recorded
    keep_still(adapted)
    return adapted
