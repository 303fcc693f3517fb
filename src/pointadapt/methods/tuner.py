"""How peft carries adapters of this package: the layer that wraps a frozen module, and the tuner that puts it there.

What peft's defaults get wrong for adapters with inner modules, and what is therefore done here instead, is in the
comments; every override is held by the contract suite (tests/contracts.py).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import init_empty_weights
from peft.utils.other import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapter import Adapter, Shared
from pointadapt.methods.sites import (
    Site,
    Unfit,
    bare,
    check_names,
    find_sites,
    leaves,
    plain_modules,
    slots_in_blocks,
    trained_parts,
)
from pointadapt.ops.batchnorm import keep_still
from pointadapt.ops.devices import device_of, move

if TYPE_CHECKING:
    from pointadapt.methods.core import AdapterConfig


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
            adapter = self.adapters[adapter_name]
            move(adapter, device or device_of(self.base_layer, adapter))


def make(config: AdapterConfig, modules: dict[str, nn.Module], site: Site, shared: Shared) -> Adapter:
    """The config's adapter for a site. Raises UserError where the method cannot stand."""
    try:
        return config.adapter(bare(modules[site.name]), site, shared)
    except Unfit as reason:
        fit = []
        for other in slots_in_blocks(modules):
            with suppress(Unfit):
                config.adapter(bare(modules[other.name]), other, shared)
                fit.append(other.slot)
        raise UserError(
            f"method {config.method!r} cannot adapt {site.slot!r} ({site.name}): {reason}; target_modules "
            f"can be {', '.join(fit) or 'left out'}"
        ) from None


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
        asked = config.target_modules
        config.prepare(model)
        if asked and not config.target_modules:
            backbone = type(getattr(model, "backbone", model)).__name__
            raise UserError(
                f"method {config.method!r} adds nothing at target_modules={asked} of {backbone}: leave it out"
            )
        modules = plain_modules(model)
        others = [cast(Any, c).modules_to_save for name, c in self.peft_config.items() if name != adapter_name]
        if config.modules_to_save is None and any(others):  # a further adapter brings a head of its own, too
            config.modules_to_save = list(next(filter(None, others)))
        elif config.modules_to_save is None and not config.target_modules:
            config.modules_to_save = trained_parts(model, config.trains)
        config.modules_to_save = leaves(modules, config.modules_to_save or []) or None
        sites = find_sites(modules, config)
        context: Any = init_empty_weights if low_cpu_mem_usage else nullcontext
        with context():
            shared = config.shared(sites)
            reference = Shared(self.store, adapter_name)
            built = [(site, make(config, modules, site, reference)) for site in sites]
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
        layer.adapters[adapter_name] = move(adapter, device_of(layer.base_layer, self.model)).train(layer.training)

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
