"""How the weights of diffusion Transformers are made, under the names that diffusers gives their parts."""

from __future__ import annotations

from ridgeline.models.diffusion import FIXED_EPS, Dense, DiffusionConfig, SelfAttention, TwoLayers
from ridgeline.models.model import Source, WeightMaker
from ridgeline.ops.records import Heads, Norm


def make_dense(make: WeightMaker, name: str, rows: int, columns: int, *modules: str) -> Dense:
    """A matrix and its bias, those of several modules one below the other."""
    each = rows // len(modules)
    return Dense(
        make.matrix(name, *(Source(f"{m}.weight", (each, columns)) for m in modules)),
        make.vector(f"{name}_bias", *(Source(f"{m}.bias", (each,)) for m in modules), fill=0.0),
    )


def make_patches(make: WeightMaker, config: DiffusionConfig, source: str = "pos_embed") -> Dense:
    """The convolution whose stride is its kernel: a matrix over the numbers of a patch."""
    kernel = (config.width, config.in_channels, config.patch, config.patch)
    return Dense(
        make.matrix("patches", Source(f"{source}.proj.weight", kernel)),
        make.vector("patches_bias", Source(f"{source}.proj.bias", (config.width,)), fill=0.0),
    )


def make_embedder(make: WeightMaker, name: str, source: str, inputs: int, width: int) -> TwoLayers:
    """Two layers that make a vector of features, such as a timestep's."""
    return TwoLayers(
        make_dense(make, f"{name}.up", width, inputs, f"{source}.linear_1"),
        make_dense(make, f"{name}.down", width, width, f"{source}.linear_2"),
    )


def make_time(make: WeightMaker, config: DiffusionConfig, source: str) -> TwoLayers:
    return make_embedder(make, "time", f"{source}.timestep_embedder", config.time_features, config.width)


def make_attention(
    make: WeightMaker,
    config: DiffusionConfig,
    name: str,
    query: str,
    key: str,
    value: str,
    out: str,
    norms: tuple[str, str] | None = None,
) -> SelfAttention:
    """Attention from the modules that its projections are; ``norms`` are those of queries and keys."""
    width = config.width
    return SelfAttention(
        name,
        make_dense(make, f"{name}.qkv", 3 * width, width, query, key, value),
        make_heads(make, config, name, norms),
        make_dense(make, f"{name}.out", width, width, out),
    )


def make_heads(
    make: WeightMaker, config: DiffusionConfig, name: str, norms: tuple[str, str] | None = None
) -> Heads:
    heads = (config.heads, config.heads, config.head_dim)
    if norms is None:
        return Heads(*heads)
    shape = (config.head_dim,)
    made = (
        make.vector(f"{name}.{which}_norm", Source(f"{source}.weight", shape), fill=1.0)
        for which, source in zip(("query", "key"), norms, strict=True)
    )
    return Heads(*heads, *(Norm("rms", weight, FIXED_EPS) for weight in made))


def make_mlp(make: WeightMaker, config: DiffusionConfig, name: str, source: str) -> TwoLayers:
    return TwoLayers(
        make_dense(make, f"{name}.up", config.intermediate, config.width, f"{source}.net.0.proj"),
        make_dense(make, f"{name}.down", config.width, config.intermediate, f"{source}.net.2"),
    )


def bare_norm(name: str, eps: float) -> Norm:
    """A layer norm without weights: what modulates it has them."""
    return Norm("layer", None, eps, role=name)
