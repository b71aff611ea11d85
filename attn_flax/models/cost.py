"""What networks cost, told from the program that JAX traces for one image: nothing is computed, no parameter drawn.

    multiply-adds = Σ over products, of the elements of the result times the terms that are summed for each
    activations   = Σ over products, of the elements of the result

Products are those of matrices, attention's among them, and convolutions, zeros around and between a map's values
included. Sums, means, norms, Fourier transforms and products by element are not counted. What a scan computes counts as
often as it turns, and of the forms that a function has for several platforms the costliest counts. A mechanism that
computes more than its equation, as that of neighbourhoods does in tiles, counts with what it computes.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from attn_flax.checks import InputError, UnknownNameError, check
from attn_flax.models import MODELS, create_model, takes
from attn_flax.models.classifier import Classifier, height_and_width

IMAGE_SIZE = 224
"""Of images for networks that are made for no size."""


class Products(NamedTuple):
    """The products of a program.

    Attributes:
        multiply_adds: how many terms are summed in all of them.
        activations: how many elements their results have.
    """

    multiply_adds: int
    activations: int


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a network that classifies images costs.

    Attributes:
        name: of the network.
        image_size: the height and width of the image.
        parameters: the numbers that are learned.
        multiply_adds: of one image in evaluation mode.
        activations: likewise.
    """

    name: str
    image_size: tuple[int, int]
    parameters: int
    multiply_adds: int
    activations: int


def is_classifier(name: str) -> bool:
    """Whether the network of that name gives the logits of images.

    >>> is_classifier("resnet50"), is_classifier("unet")
    (True, False)

    Raises:
        UnknownNameError: the network does not exist; the close names are listed.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    return issubclass(MODELS[name][0], Classifier)


def default_image_size(name: str) -> tuple[int, int]:
    """The height and width of the images that the network of that name is made for; 224×224 if it is for all sizes.

    >>> default_image_size("swinv2_tiny_window8_256"), default_image_size("resnet50")
    ((256, 256), (224, 224))

    Raises:
        UnknownNameError: the network does not exist.
    """
    if not takes(name, "image_size"):
        return IMAGE_SIZE, IMAGE_SIZE
    model, own = MODELS[name]
    size = own.get("image_size", inspect.signature(model.__init__).parameters["image_size"].default)
    return height_and_width(size)


def describe_model(name: str, *, image_size: tuple[int, int] | None = None, **arguments: Any) -> ModelDescription:
    """What the network of that name costs.

    Args:
        name: one of `list_models()`.
        image_size: the height and width of the image, for which the network is made if it takes them; by default those
            that it is made for.
        **arguments: further ones of `create_model`.

    Raises:
        UnknownNameError: the network or an argument does not exist; the close ones are listed.
        InputError: the network does not classify images, or refuses an argument or the size.

    >>> cost = describe_model("resnet50")
    >>> cost.parameters, cost.multiply_adds
    (25557032, 4089184256)
    """
    check(is_classifier(name), f"model {name!r} is no image classifier: expected one, such as 'resnet50'.")
    size = image_size or default_image_size(name)
    if image_size and takes(name, "image_size"):
        arguments["image_size"] = size
    model = nnx.eval_shape(lambda: create_model(name, **arguments, rngs=nnx.Rngs(0)))
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    image = jax.ShapeDtypeStruct((1, *size, arguments.get("in_channels", 3)), jnp.float32)
    products = count_products(lambda params, rest, image: nnx.merge(graph, params, rest)(image), params, rest, image)
    return ModelDescription(name, size, sum(p.size for p in jax.tree.leaves(params)), *products)


def count_products(function: Callable, *arguments: Any) -> Products:
    """The products of a function of arrays, or of what stands for them: their shapes and types.

    Raises:
        InputError: a product is computed in a loop that may turn any number of times.

    >>> a, b = jnp.zeros((7, 5)), jnp.zeros((5, 3))
    >>> count_products(lambda a, b: jax.nn.relu(a @ b), a, b)
    Products(multiply_adds=105, activations=21)
    """
    return _sum(_of_program(jax.make_jaxpr(function)(*arguments).jaxpr))


def _sum(products):
    return Products(*map(sum, zip((0, 0), *products, strict=True)))


def _of_program(jaxpr):
    """Those of each equation."""
    return [_of_equation(equation.primitive.name, equation) for equation in jaxpr.eqns]


def _of_equation(name, equation):
    if name in TERMS:
        size = math.prod(equation.outvars[0].aval.shape)
        return Products(size * TERMS[name](equation), size)
    programs = [_sum(_of_program(jaxpr)) for jaxpr in core.jaxprs_in_params(equation.params)]
    if name == "cond":
        return max(programs)
    products = _sum(programs)
    if name == "while" and products.activations:
        raise InputError("products in a loop that may turn any number of times cannot be counted.")
    turns = TURNS[name](equation) if name in TURNS else 1
    return Products(turns * products.multiply_adds, turns * products.activations)


def _terms_of_product(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    return math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)


def _terms_of_convolution(equation):
    _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
    return math.prod(equation.invars[1].aval.shape[axis] for axis in (inputs, *window))


TERMS = {"dot_general": _terms_of_product, "conv_general_dilated": _terms_of_convolution}
"""How many are summed for an element of what it gives."""
TURNS = {
    "scan": lambda equation: equation.params["length"],
    "pallas_call": lambda equation: math.prod(equation.params["grid_mapping"].grid),
}
"""How often what is within it is computed."""
