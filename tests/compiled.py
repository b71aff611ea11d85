"""Values and gradients as one program: what is computed operation by operation is compiled so, too, and for longer."""

import jax


def with_gradients(f, arguments, cotangent):
    """f(*arguments), and its gradients to the cotangent."""

    def both(arguments, cotangent):
        y, pull_back = jax.vjp(f, *arguments)
        return y, *pull_back(cotangent)

    return jax.jit(both)(arguments, cotangent)
