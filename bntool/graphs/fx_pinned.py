"""Norms that a traced model must keep, wherever their maps could go: somebody would miss them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from bntool.graphs.fx_hooks import has_hooks, has_own_call
from bntool.graphs.fx_ways import Way

#: attributes in which norm subclasses keep what they do after normalising
AFTERWARDS = ("drop", "act")


@dataclass
class Pins:
    """Those of one way; `plain` are its values that are no tensors."""

    way: Way
    plain: Container[fx.Node]

    def why_pinned(self, node: fx.Node) -> str:
        """Why the norm that a node calls must stay; empty if nothing is against its going."""
        path = str(node.meta.get("at", ""))
        module = self.way.sizes.module(path)
        if path and has_hooks(module):
            return f"it has hooks, which would vanish with {path}"
        if path and has_own_call(module):
            return f"the __call__ of its own class would vanish with {path}"
        if module in self.way.asked:
            return f"the code around it asks what {path} is"
        if path and path in self._read_by_others:
            return f"the code around it reads {path}'s tensors"
        if node.op == "call_module":
            return ""
        if not (path and isinstance(module, nn.modules.batchnorm._NormBase)):
            return "it is a function call, which modules alone cannot take out: use form='graph'"
        if self._does_more(node, path, module):
            return "what else its forward does would be lost: use form='graph'"
        return ""

    @cached_property
    def _read_by_others(self) -> set[str]:
        """Modules whose tensors traced code outside of them reads: those would be gone with a norm."""
        reads = [n for n in self.way.graph.nodes if n.op == "get_attr"]
        owners = [str(n.target).rpartition(".")[0] for n in reads]
        found = {p for p, n in zip(owners, reads, strict=True) if n.meta.get("at") != p}
        return found | {name.rpartition(".")[0] for name in self.way.read_unseen}

    def _does_more(self, node: fx.Node, path: str, module: nn.Module) -> bool:
        """Whether a norm subclass does more than normalise, then drop, then activate."""
        others = [n for n in self.way.graph.nodes if n is not node and n.op != "get_attr"]
        places = [n.meta.get("at", "") for n in others if n not in self.plain]
        inside = [at for at in places if (at + ".").startswith(path + ".")]
        known = tuple(f"{path}.{name}" for name in AFTERWARDS if hasattr(module, name))
        return any(not (at in known or at.startswith(tuple(k + "." for k in known))) for at in inside)
