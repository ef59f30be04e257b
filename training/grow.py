"""A deeper model that begins where a shallower one ended.

Some layers are put in twice, and what the copy adds to the residual stream is set to zero, so the deeper
model computes exactly what the shallower did and learns from there (block expansion, Wu et al. 2024,
arXiv:2401.02415).
"""

import re
from pathlib import Path

import torch

from ridgeline.errors import InputError

_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
_ADDS_TO_RESIDUAL = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def origins(shallow: int, deep: int) -> list[tuple[int, bool]]:
    """For every layer of the deeper model: the layer it comes from, and whether it is that one's copy.

    The copies are spread evenly, each behind its original. Raises InputError unless
    shallow <= deep <= 2 shallow.
    """
    if not shallow <= deep <= 2 * shallow:
        raise InputError(f"a model of {shallow} layers grows to {shallow}..{2 * shallow} layers, not {deep}")
    added = deep - shallow
    doubled = {shallow * (i + 1) // added - 1 for i in range(added)}
    pairs = []
    for layer in range(shallow):
        pairs.append((layer, False))
        if layer in doubled:
            pairs.append((layer, True))
    return pairs


def grown(folder: Path, layers: int) -> dict[str, torch.Tensor]:
    """The tensors of `folder`'s model with `layers` layers, by name, float32."""
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    shallow = 1 + max(int(match[2]) for name in tensors if (match := _LAYER.fullmatch(name)))
    result = {name: tensor for name, tensor in tensors.items() if not _LAYER.fullmatch(name)}
    for index, (origin, copy) in enumerate(origins(shallow, layers)):
        for name, tensor in tensors.items():
            match = _LAYER.fullmatch(name)
            if match and int(match[2]) == origin:
                silent = copy and name.endswith(_ADDS_TO_RESIDUAL)
                made = torch.zeros_like(tensor) if silent else tensor.clone()
                result[f"{match[1]}{index}{match[3]}"] = made
    return result
