"""pointtpa_*: the released parallel-adapter module alone, static or dynamic, one scene."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from pointadapt.methods.pointtpa import Grouping, PatchAdapter

#: names in the released state dict -> names here
RENAMED = {
    "down.attn.fc1.weight": "down.gate.fc1",
    "down.attn.fc2.weight": "down.gate.fc2",
    "down.attn.fc2.bias": "down.gate.bias",
    "down.dpp.weight": "down.weight",
    "down.dpp.bias": "down.bias",
}


def check(path: Path) -> list[tuple[str, float, float]]:
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        data = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no iterator)
    channels, mid, experts, groups, row = (int(meta[k]) for k in ("C", "mid", "K", "groups", "order_idx"))
    is_dynamic = "state.down.dpp.weight" in data
    temperature = float(meta["temperature"])
    results = []
    alike = len(data["in.feat"]) % groups == 0  # then both rules cut at the same places
    for rule in ("official", "clean") if alike else ("official",):
        grouping = Grouping(groups, "num", rule)
        module = PatchAdapter(channels, mid, experts if is_dynamic else None, grouping, temperature=temperature)
        own = module.state_dict()
        state = {k.removeprefix("state."): v for k, v in data.items() if k.startswith("state.")}
        state = {RENAMED.get(k, k): v for k, v in state.items()}
        module.load_state_dict({k: v.view_as(own[k]) if v.shape[-1:] == (1,) else v for k, v in state.items()})
        feat, order = data["in.feat"], data["in.serialized_order"][row]
        patches = grouping.cut(order, data["in.serialized_inverse"][row], [len(feat)]) if is_dynamic else None
        with torch.no_grad():
            error = (module.branch(feat, patches) - data["out"]).abs().max()
        results.append((f"out ({rule} grouping)", float(error), 1e-5 * float(data["out"].abs().max())))
        if not is_dynamic:
            return [("out", *results[0][1:])]
    return results
