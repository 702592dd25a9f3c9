"""The layers in front of `F.scaled_dot_product_attention` and of transformers' "sdpa" entry.

A layer wraps the function that its name held, and checks at each call what is in force; if nothing is, it passes the
call on. So modes can be removed in any order, and a layer that another library has wrapped in the meantime stays in
place and does nothing. Each name gets its layer with the first user, and loses it with the last one.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from mpsdiag.fixes.imports import when_imported
from mpsdiag.fixes.registration import OWN, repaired_attention
from mpsdiag.fixes.repairs import REPAIRS, Function, MaskArgument, Repair, finite_minimum, repaired_sdpa
from mpsdiag.sdpa.watch import answer, overriding

MARK: Final = "_mpsdiag_mode"
"""Attribute of a module with a mode of its own, looked up in `REPAIRS`: for code that needs the name "sdpa"."""


@dataclass
class InForce:
    """What the layers do for all users; a plain object, so that compiled code guards on it.

    `instead` runs in the place of `F.scaled_dot_product_attention`; `repair` is done to masks, there and at
    the entry of transformers where that is not reached by name; `layer` is our layer on the function that was
    made last; `saw` is called with the arguments, the options and the result of each call of it.
    """

    instead: Function | None = None
    repair: Repair | None = None
    layer: Function | None = None
    saw: Callable[[tuple[Any, ...], dict[str, Any], Any], None] | None = None


IN_FORCE: Final = InForce()
LOCK: Final = threading.RLock()
# Each layer that was made, with what it stands before. By identity: a wrapper may copy attributes of ours.
_LAYERS: Final[weakref.WeakKeyDictionary[Function, Function]] = weakref.WeakKeyDictionary()
_USERS: Final = {"function": 0, "entry": 0}


def hold(*, function: bool) -> Callable[[], None]:
    """Request the layers, and keep them until the returned function is called.

    The entry of transformers gets its layer as soon as transformers has been imported.
    """
    names = ("function", "entry") if function else ("entry",)
    with LOCK:
        for name in names:
            _USERS[name] += 1
        _put()
    when_imported("transformers.modeling_utils", _put)

    def release() -> None:
        with LOCK:
            for name in names:
                _USERS[name] -= 1
            _take_away()

    return release


def _put() -> None:
    """Wrap the requested functions, unless the outermost function is already a layer."""
    with LOCK:
        if _USERS["function"]:
            function = torch.nn.functional.scaled_dot_product_attention
            if function not in _LAYERS:
                function = torch.nn.functional.scaled_dot_product_attention = _sdpa_layer(function)
            IN_FORCE.layer = function
        interface = _interface()
        if _USERS["entry"] and interface is not None and _entry(interface) not in _LAYERS:
            interface.register("sdpa", _entry_layer(_entry(interface)))


def _take_away() -> None:
    """Restore unused names whose layer is outermost; a wrapped layer stays and passes calls on."""
    function = torch.nn.functional.scaled_dot_product_attention
    if not _USERS["function"] and function in _LAYERS:
        torch.nn.functional.scaled_dot_product_attention = _LAYERS[function]
        IN_FORCE.layer = None
    interface = _interface()
    if not _USERS["entry"] and interface is not None and _entry(interface) in _LAYERS:
        interface.register("sdpa", _LAYERS[_entry(interface)])


def _interface() -> Any:
    library = sys.modules.get("transformers.modeling_utils")
    return getattr(library, "AttentionInterface", None)


def _entry(interface: Any) -> Function:
    entry: Function = interface._global_mapping["sdpa"]  # noqa: SLF001 - an instance may shadow the public view
    return entry


def _sdpa_layer(previous: Function) -> Function:
    where = MaskArgument.of(previous, "attn_mask", 3)

    # wraps: code that compares names still reads 'scaled_dot_product_attention'.
    @functools.wraps(previous, updated=())
    def scaled_dot_product_attention(*args: Any, **options: Any) -> Any:
        if overriding(args, options):
            return answer(previous, scaled_dot_product_attention, args, options)
        if IN_FORCE.instead is not None:
            result = IN_FORCE.instead(*args, **options)
        elif IN_FORCE.repair is None:
            result = previous(*args, **options)
        else:
            result = repaired_sdpa(previous, where, IN_FORCE.repair, args, options)
        if IN_FORCE.saw is not None:
            IN_FORCE.saw(args, options, result)
        return result

    _LAYERS[scaled_dot_product_attention] = previous
    compile_to_operator(scaled_dot_product_attention, "aten::scaled_dot_product_attention")
    return scaled_dot_product_attention


def compile_to_operator(layer: Function, operator: str) -> None:
    """Make TorchScript, which cannot compile a layer, treat it as torch's own operator, as in stock torch."""
    from torch.jit import _builtins

    # There is no public way. The table is keyed by id, so the entry goes with the layer.
    known = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]  # noqa: SLF001
    known[id(layer)] = operator
    weakref.finalize(layer, known.pop, id(layer), None)


def _own_eager(args: tuple[Any, ...]) -> Function | None:
    """The eager attention of a model's own code: that of GPT-2 up to 4.57 gives rows of pads other values than ours."""
    eager: Function | None = getattr(
        sys.modules.get(type(args[0] if args else None).__module__), "eager_attention_forward", None
    )
    return eager


def _entry_layer(previous: Function) -> Function:
    # What transformers has there calls torch's function by its public name: our layer on that does the work once.
    # Another library's entry may hold its own function, and another library may have replaced the public name.
    by_name = getattr(previous, "__module__", None) == OWN
    where = MaskArgument.of(previous, "attention_mask", 4)

    @functools.wraps(previous, updated=())
    def sdpa_attention_forward(*args: Any, **options: Any) -> Any:
        own = getattr(args[0] if args else options.get("module"), MARK, None)
        repair = IN_FORCE.repair if own is None else REPAIRS[own]
        done_there = by_name and torch.nn.functional.scaled_dot_product_attention is IN_FORCE.layer
        if own is None and done_there and IN_FORCE.instead is not None:
            mask, eager = where.find(args, options), _own_eager(args)
            if mask is not None and eager is not None:
                return where.call(eager, finite_minimum(mask, args[1].dtype).mask, args, options)
        if repair is None or (own is None and done_there):
            return previous(*args, **options)
        return repaired_attention(previous, repair, args, options, where)

    _LAYERS[sdpa_attention_forward] = previous
    return sdpa_attention_forward
