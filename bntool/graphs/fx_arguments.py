"""The arguments that a traced forward takes: what each is, and what it may be another time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from torch import fx, nn

from bntool.graphs.fx_decorated import arguments_behind, further, hands_on
from bntool.graphs.fx_identity import alternatives
from bntool.graphs.fx_knowing import Knowing
from bntool.graphs.fx_shortcuts import LITERALS
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_values import Value


class TakingArguments(Knowing):
    """A tracer that is given a forward's arguments as values, or as what they can only be themselves."""

    def __init__(
        self, decisions: list[bool], inputs: Inputs | None, sizes_decide: bool, as_given: bool
    ) -> None:
        super().__init__(decisions, inputs, sizes_decide)
        self.as_given = as_given
        """Whether arguments that `inputs` leave out have their defaults: the graph takes them no more."""
        self.asks_identity = False
        """Whether code that is reached asks what is True, and not only what is true."""
        self.further: list[str] = []
        """The `*args` and `**kwargs` that the forward is traced without."""
        self.known_parts: tuple[nn.Module, dict[nn.Module, str], dict[Any, str]] | None = None
        """The traced module, the paths of its parts, and of the tensors that are plain attributes of them."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        if self.known_parts is not None:
            self.root, self.submodule_paths, self.tensor_attrs = self.known_parts
            is_module = True
            if isinstance(inspect.getattr_static(self.root, "forward"), staticmethod):
                raise self.refusal("its forward is static: what it calls is no part of it")
        if is_module and hands_on(root_fn, self.inputs, self.as_given):
            self.further = further(root_fn)
            if self.further and not self.sizes_decide:  # a part: who knows what the code around it gives
                raise self.refusal("it takes further arguments")
            function, behind = arguments_behind(root_fn, self._placeholder, self.inputs, self.as_given)
            return function, [self.root, *(self._default(place, a) for place, a in enumerate(behind))]
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [self._default(place - is_module, a) for place, a in enumerate(arguments)]

    def _placeholder(self, parameter: inspect.Parameter) -> fx.Proxy:
        default = () if parameter.default is parameter.empty else (parameter.default,)
        return self.create_proxy("placeholder", parameter.name, default, {})

    def _default(self, place: int, argument: Any) -> Any:
        """What an argument with a default is: a fork where that is None, as no traced value ever is.

        With `as_given` it is what the inputs make of it; who calls a module may do it another way.
        """
        if not isinstance(argument, Value):
            return argument
        if self.as_given and self._is_left_out(place, argument.node):
            argument.node.meta["left_out"] = True
            return argument.node.args[0]
        found = self._itself(argument)
        if found is not argument or not argument.node.args or self.as_given:
            return found
        argument.node.meta["optional"] = True
        return argument if argument.node.args[0] is not None or self.forks.at(argument.node) else None

    def _itself(self, value: Value) -> Any:
        """What a value is of which code may ask whether it is a very object: None, True, a member."""
        known = self.known(value.node)
        if known is None:
            return self._or_none(value)
        options = alternatives(known, flags=self.asks_identity)
        return self._one_of(options, value) if options else value

    def _is_left_out(self, place: int, argument: fx.Node) -> bool:
        """Whether the inputs leave an argument to its default, which is a plain value."""
        args, kwargs = self.inputs if self.inputs is not None else ((), {})
        given = place < len(args) or argument.target in kwargs
        return not given and any(type(a) in LITERALS or isinstance(a, Enum) for a in argument.args)

    def _one_of(self, options: Sequence[Any], value: Value) -> Any:
        """Which of these an argument is: a fork for each but the last, as a traced value is none of them."""
        value.node.meta["optional"] = True
        first = (o for o in options[:-1] if self.forks.at(value.node, (value.node, o)))
        return next(first, options[-1])

    def _or_none(self, value: Value) -> Any:
        """What may be None another time, where the inputs say so: a fork, as no traced value ever is None."""
        value.node.meta["optional"] = True
        return value if self.forks.at(value.node) else None
