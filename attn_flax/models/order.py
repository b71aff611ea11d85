"""In which order the parameters of a network are used: for learning rates by layer, and for stages that are frozen.

Each parameter has a depth, for a network of L blocks

    0        what is used before the first block: patch embeddings, positions, the class token
    i        block i, and what leads to it from block i-1, such as a smaller map
    L + 1    what is used behind the last block: norms and heads

The order is that in which the program that JAX traces for one image uses them; what is not used in evaluation at all,
such as a head for training, is behind the last block.

Source of the depths: Bao, Dong, Piao and Wei, "BEiT: BERT Pre-Training of Image Transformers" (2021), arXiv:2106.08254,
whose code has them so.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from attn_flax.checks import check
from attn_flax.models.classifier import Classifier


def parameter_depths(model: Classifier, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """The depth of each parameter, by its path.

    Args:
        model: the network, or one of shapes only.
        image_shape: height, width and channels of an image that it takes.

    >>> from attn_flax.models.vit import MODELS
    >>> vit, own = MODELS["vit_tiny_patch16_224"]
    >>> depths = parameter_depths(nnx.eval_shape(lambda: vit(5, **own, rngs=nnx.Rngs(0))), (224, 224, 3))
    >>> [depths[name] for name in ("pos_embed", "blocks.0.norm1.scale", "blocks.11.norm1.scale", "norm.scale")]
    [0, 1, 12, 13]
    """
    blocks = [block for stage in model.block_paths() for block in stage]
    first_uses = _first_uses(model, image_shape)
    starts = [min(use for name, use in first_uses.items() if _is_within(name, block)) for block in blocks]
    return {name: _depth(name, use, blocks, starts) for name, use in first_uses.items()}


def first_stages(model: Classifier, count: int, image_shape: tuple[int, int, int]) -> list[str]:
    """The parameters of the first stages, by their paths: those used before the first, and up to the end of the last.

    Raises:
        InputError: there are not so many stages.
    """
    stages = model.block_paths()
    check(count <= len(stages) > 0, f"the network has {len(stages)} stages: expected at most as many, got {count}.")
    last = sum(map(len, stages[:count]))
    return [name for name, depth in parameter_depths(model, image_shape).items() if depth <= last]


def layer_decay_factors(model: Classifier, decay: float, image_shape: tuple[int, int, int]) -> dict:
    """decay^(L + 1 - depth) for each of the parameters that are trained, in the tree that they form.

    Source: Clark, Luong, Le and Manning, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators"
    (2020), arXiv:2003.10555, appendix A.

    Raises:
        InputError: a network without blocks.
    """
    behind = 1 + sum(map(len, model.block_paths()))
    check(
        behind > 1,
        f"layers learn at rates of their own where there are blocks, got {type(model).__name__} without any.",
    )
    depths = parameter_depths(model, image_shape)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map_with_path(lambda path, _: decay ** (behind - depths[_name(path)]), params)


def _first_uses(model, image_shape):
    """For each parameter the number of the first equation that has it."""
    graph, rest, params = nnx.split(model, (nnx.RngState, nnx.BatchStat), ...)
    params = nnx.to_pure_dict(params)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def run(params, rest, image):
        network = nnx.merge(graph, rest, params)
        network.eval()
        return network(image)

    program, uses = jax.make_jaxpr(run)(params, rest, image), {}
    for number, equation in enumerate(program.jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, core.Literal):
                uses.setdefault(variable, number)
    unused = len(program.jaxpr.eqns)
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    return {name: uses.get(variable, unused) for name, variable in zip(names, program.jaxpr.invars, strict=False)}


def _depth(name, use, blocks, starts):
    for i, block in enumerate(blocks):
        if _is_within(name, block):
            return i + 1
    after = next((i for i, start in enumerate(starts) if start > use), None)
    if after is None:
        return len(blocks) + 1
    if after == 0:
        return 0
    # A norm at the end of a stage is that stage's, though it is used after its last block.
    is_of_former = _shared(name, blocks[after - 1]) > _shared(name, blocks[after])
    return after if is_of_former else after + 1


def _is_within(name, part):
    return name == part or name.startswith(f"{part}.")


def _shared(name: str, other: str) -> int:
    """How many names two paths have in common at their beginning."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return next((i for i, (one, another) in enumerate(pairs) if one != another), 0)


def _name(path: Sequence) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
