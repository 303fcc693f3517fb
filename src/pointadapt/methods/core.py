"""What a method is to Hugging Face peft: a config that makes adapters; ``adapt`` and ``load_adapted`` put them to use.

A method is a config under ``@peft_method("name")`` that makes its adapters, and adapters that are plain modules:

    @peft_method("scaled")
    @dataclass
    class ScaledConfig(AdapterConfig):
        target_modules: list[str] = field(default_factory=lambda: ["ffn"])

        def adapter(self, frozen, site, shared):
            return Scale(width(frozen))          # an Adapter: forward(base, point) -> what stands in for base(point)

How peft carries them is in tuner.py. These two files and from_peft.py alone know peft.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

import peft
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from safetensors import SafetensorError, safe_open
from torch import nn

from pointadapt.errors import UserError
from pointadapt.methods.adapter import (  # noqa: F401  (methods take them from here)
    Adapter,
    Shared,
    at_least,
    check_dropouts,
    one_of,
)
from pointadapt.methods.sites import (
    Site,
    below,
    check_names,
    has_parts,
    in_decoder,
    leaves,
    linear_slots,
    matches,
    plain_modules,
    trained_parts,
)
from pointadapt.methods.tuner import AdapterLayer, Tuner  # noqa: F401
from pointadapt.ops.batchnorm import keep_still

#: Method name -> config class; each file of this folder adds its own.
METHODS: dict[str, type[PeftConfig]] = {}
#: An adapter's files, and the key in the second of what its head knows of the backbone.
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "base_model.model.head.fingerprint"
#: What most methods need of a backbone.
NEEDS_TRANSFORMER = "blocks of attention and feed-forward branches, which a convolutional network does not have"


def check_kind(config: Any, name: str, model: Any) -> None:
    """Raise UserError when the method ``name`` does not work on the model's kind of backbone, or lacks what it trains.

    Configs that do not say (those of peft itself) are asked nothing.
    """
    backbone = getattr(model, "backbone", model)
    kind = getattr(backbone, "kind", "points")
    if kind not in getattr(config, "works_on", (kind,)) or not has_parts(backbone, getattr(config, "trains", ())):
        raise UserError(f"method {name!r} cannot work on {type(backbone).__name__}: it needs {config.needs}")
    if getattr(config, "regroups", False) and getattr(backbone, "pyramid", None) is not None:
        raise UserError(f"method {name!r} cuts clouds into groups by itself, and a pyramid has none: use head mlp")


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
    #: Whether it makes tokens of its own from the points, beside or instead of those the tokenizer makes.
    regroups: ClassVar[bool] = False
    #: Whether the adapted model computes exactly what the plain one does until it is trained.
    identity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(self.method.upper())
        one_of("targets", self.targets, ("encoder", "all"))
        check_dropouts(self)
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
        if self.target_modules and type(self).adapter is AdapterConfig.adapter:
            raise UserError(f"method {self.method!r} makes no adapters: leave target_modules={self.target_modules} out")
        slots = slots_of(model)
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


def slots_of(model: Any) -> dict[str, str]:
    return getattr(getattr(model, "backbone", model), "slots", {})


def resolve(model: nn.Module, modules: dict[str, nn.Module], config: Any) -> None:
    """Replace slot names in a peft config's ``target_modules`` by the full names of the modules they stand for."""
    slots = slots_of(model)
    wanted = getattr(config, "target_modules", None) or []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not set(wanted) & set(slots):
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
    """A PeftModel whose ``print_trainable_parameters`` also says what the active method counts, and which takes in
    whole adapters or none."""

    def print_trainable_parameters(self) -> None:
        super().print_trainable_parameters()
        counts = getattr(self.peft_config[self.active_adapter], "counts", None)
        found = counts(self, self.active_adapter) if counts else {}
        if found:
            print(" || ".join(f"{k}: {v:,d}" if isinstance(v, int) else f"{k}: {v:.2f}" for k, v in found.items()))

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """peft's. Raises UserError for a folder with a damaged adapter, or one that does not fit the model."""
        subfolder = kwargs.get("subfolder")
        folder = os.path.join(model_id, subfolder) if subfolder else model_id
        if os.path.isdir(folder):  # anything else is the name of an adapter on the hub
            check_files(folder)
        is_new = adapter_name not in self.peft_config
        try:
            with fitting(folder):
                found = super().load_adapter(model_id, adapter_name, *args, **kwargs)
                if found.missing_keys:  # peft merely warns
                    raise KeyError(found.missing_keys[0])
        except Exception:
            if is_new and adapter_name in self.peft_config:  # with random weights
                self.delete_adapter(adapter_name)
            raise
        return found


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Gives every module its children, attributes and flags back when the block fails."""
    modules = [(vars(m), dict(vars(m)), dict(m._modules)) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for state, attributes, children in modules:
            state.clear()
            state.update(attributes)
            state["_modules"].clear()
            state["_modules"].update(children)
        for parameter, requires_grad in flags:
            parameter.requires_grad = requires_grad
        raise


def adapt(model: nn.Module, config: Any, adapter_name: str = "default") -> PeftModel:
    """``peft.get_peft_model`` for a task model: frozen backbone + adapters + trained head.

    model   a task model (``.backbone``, ``.head``), changed in place, or a bare backbone
    config  one of METHODS, or any peft config; slot names in its ``target_modules`` are resolved. It is copied.
    Fresh parts of the backbone (a decoder that no checkpoint filled) are trained in full as well.
    Raises UserError when nothing matches the targets, or the head would stay frozen; the model is then as it was.
    """
    if isinstance(model, PeftModel):
        raise UserError("this model is adapted already: add a further adapter with model.add_adapter(name, config)")
    config = copy.deepcopy(config)
    method = getattr(config, "method", config.peft_type.lower())
    check_kind(config, method, model)
    modules = plain_modules(model)
    if config.modules_to_save is None:
        config.modules_to_save = trained_parts(model, getattr(config, "trains", ()))
    config.modules_to_save = leaves(modules, config.modules_to_save) or None
    asked = getattr(config, "target_modules", None)
    asked = sorted(asked) if isinstance(asked, set) else asked  # as peft keeps it
    if not isinstance(config, AdapterConfig):
        resolve(model, modules, config)
        check_names(adapter_name, f"{config.peft_type.lower()}_", modules, [])
    with all_or_nothing(model):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*should not be contained in the prefix.*")
            try:
                adapted = peft.get_peft_model(model, config, adapter_name=adapter_name)
            except ValueError as error:
                if isinstance(error, UserError) or isinstance(config, AdapterConfig):
                    raise
                # peft says "Target module Block(...)", with all that is in it
                told = re.sub(r"(?s)^Target module (\w+)\(.*\) is not", r"\1 is not", str(error)).partition(". ")[0]
                linear = ", ".join(linear_slots(modules, slots_of(model))) or "none"
                raise UserError(
                    f"method {method!r} with target_modules={asked}: {told}; the backbone's Linear slots are: {linear}"
                ) from error
        adapted.__class__ = Adapted
        config.base_model_name_or_path = None  # see Recorded
        keep_still(model)
        head = getattr(model, "head", None)
        if isinstance(head, nn.Module) and not any(p.requires_grad for p in head.parameters()):
            raise UserError(
                f"the head is not trained: put 'head' into modules_to_save (it is {config.modules_to_save})"
            )
    return adapted


def check_files(folder: str | os.PathLike) -> None:
    """Raise UserError when an adapter's folder lacks a file, or one of them cannot be read."""
    for name in (CONFIG, WEIGHTS):
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(f"{folder} holds no adapter: {name} is missing; give the folder that save_pretrained wrote")
    file = os.path.join(folder, CONFIG)
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
        method = content.get("peft_type") if isinstance(content, dict) else None
        if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"{method!r} is no method, or its code is not imported")
        with warnings.catch_warnings(action="ignore"):  # said once is enough, when the adapter is loaded
            PeftConfig.from_pretrained(os.fspath(folder))
        file = os.path.join(folder, WEIGHTS)
        with safe_open(file, "pt"):
            pass
    except (ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}): use another checkpoint, or train again") from error


@contextmanager
def fitting(folder: str | os.PathLike) -> Iterator[None]:
    """Turns what peft and PyTorch say of tensors and settings that do not fit the model into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        mismatch = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if type(error) is RuntimeError and not mismatch:
            raise
        told = f"{error} is missing" if isinstance(error, KeyError) else (mismatch or [str(error)])[0]
        raise UserError(
            f"the adapter in {folder} does not fit this model ({told.rstrip('.')}): load it onto the backbone it was "
            "trained on, or use another checkpoint"
        ) from error


def check_backbone(model: nn.Module, folder: str | os.PathLike) -> None:
    """Raise UserError when the adapter in ``folder`` was trained on another backbone, whose head says so, before a
    method finds fault with what follows from that."""
    check = getattr(getattr(model, "head", None), "check_fingerprint", None)
    with safe_open(os.path.join(folder, WEIGHTS), "pt") as weights:
        if check is not None and FINGERPRINT in weights.keys():  # noqa: SIM118  (no mapping)
            check(weights.get_tensor(FINGERPRINT))


def load_adapted(
    model: nn.Module, folder: str | os.PathLike, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """``PeftModel.from_pretrained`` on a plain model, with this package's methods known to peft.

    Raises UserError when the folder holds no adapter, a damaged one, or one of another backbone or class list.
    """
    check_files(folder)
    check_backbone(model, folder)
    with fitting(folder):
        adapted = Adapted.from_pretrained(model, os.fspath(folder), adapter_name=adapter_name, is_trainable=trainable)
    adapted.peft_config[adapter_name].base_model_name_or_path = None  # see Recorded
    keep_still(adapted)
    return adapted
