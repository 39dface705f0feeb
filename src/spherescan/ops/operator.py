"""Kernels as operators of torch, which can be traced, exported and differentiated."""

from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = "spherescan"
_LIBRARY: Any = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_PLAIN = {torch.Tensor, torch.nn.Parameter}


class Operator:
    """An operator that returns new tensors and writes to none of its arguments.

    It is registered as `torch.library.custom_op` would, but for the guard of every call against
    torch's compiler: that guard imports the compiler, a second of every process that computes.
    Tensors that hold values go straight to what computes: torch's way to an operator takes longer
    than a small kernel.

    Args:
        name: Its name in the namespace of this package.
        schema: Arguments and results, as torch writes them.
        run: What it computes; called with the arguments in order.
        shapes: The same for tensors without values: returns empty tensors like the results.
        gradients: Backward pass, as `torch.library.register_autograd` takes it; when missing, the
            results have no gradient, and asking for one is an error.
        remember: What that pass needs, kept as `setup_context` of the same.

    Attributes:
        registered: The operator of torch.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        run: Callable[..., Any],
        shapes: Callable[..., Any],
        *,
        gradients: Callable[..., Any] | None = None,
        remember: Callable[..., None] | None = None,
    ) -> None:
        full_name = f"{_NAMESPACE}::{name}"

        def refuse(*_: Any) -> None:
            raise RuntimeError(f"{full_name} has no gradient of its own")

        def forget(*_: Any) -> None:
            pass

        remember, gradients = remember or forget, gradients or refuse
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(full_name, shapes, lib=_LIBRARY)
        torch.library.register_autograd(full_name, gradients, setup_context=remember, lib=_LIBRARY)
        self.registered: Callable[..., Any] = getattr(torch.ops.spherescan, name).default
        self._run = run
        function: Any = type(
            name,
            (torch.autograd.Function,),
            {
                "forward": staticmethod(run),
                "setup_context": staticmethod(remember),
                "backward": staticmethod(gradients),
            },
        )
        self._differentiated: Callable[..., Any] = function.apply

    def __call__(self, *arguments: Any) -> Any:
        """Compute."""
        plain = all(type(x) in _PLAIN for x in arguments if isinstance(x, torch.Tensor))
        if torch.compiler.is_compiling() or not plain:
            return self.registered(*arguments)
        run = self._differentiated if torch.is_grad_enabled() else self._run
        return run(*arguments)
