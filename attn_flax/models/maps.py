"""Maps of half and of twice the size, which networks of several sizes go through."""

from jaxtyping import Array, Float

from attn_flax.checks import check


def check_halvings(image_size: tuple[int, int], halvings: int, why: str) -> None:
    """Raises InputError unless an image can be halved so often."""
    check(
        all(size >= 1 and size % 2**halvings == 0 for size in image_size),
        f"the image's height and width must be multiples of {2**halvings} for {why}, got {image_size}.",
    )


def double(x: Float[Array, "*b h w c"]) -> Float[Array, "*b 2*h 2*w c"]:
    """Each position becomes four of the same value."""
    return x.repeat(2, -3).repeat(2, -2)


def halve(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h//2 w//2 c"]:
    """Four positions become one, their mean."""
    *batch, h, w, c = x.shape
    return x.reshape(*batch, h // 2, 2, w // 2, 2, c).mean((-4, -2))
