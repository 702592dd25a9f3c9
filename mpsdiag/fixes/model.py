"""One model: set its attention mode, verify that it took effect, and restore the previous one."""

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpsdiag.errors import BadInput
from mpsdiag.fixes import anatomy, layers, registration
from mpsdiag.fixes.anatomy import among, set_attention
from mpsdiag.fixes.modes import Handle, Mode, mode_named
from mpsdiag.fixes.positions import apply_positions
from mpsdiag.fixes.process import install
from mpsdiag.quiet import errors_only
from mpsdiag.words import POSITIONS


@dataclass
class _Applied:
    """A mode on a model: what was set, and the previous state of every config and of the mark."""

    key: str
    before: list[tuple[Any, str | None]]
    mark_before: str | None


_APPLIED: weakref.WeakKeyDictionary[nn.Module, list[_Applied]] = weakref.WeakKeyDictionary()


def apply(model: nn.Module, name: str) -> Handle:
    """Set an attention mode, or the fix `positions`, for one model and its sub-models.

    The change is in memory only: a model that is saved and loaded again has its default. Sub-models that cannot
    use SDPA keep their eager attention under the SDPA modes.

    Args:
        model: A transformers model, or a module that contains some, such as one wrapped by peft.
        name: One of `MODES`, or `positions`, which gives the model position ids made from the attention mask.

    Returns:
        The handle that restores the previous mode; also a context manager.

    Raises:
        BadInput: The mode does not exist or cannot run here; there is no transformers model in `model`; or its class
            does not let its attention be switched, in which case the message names a way that works.
    """
    if name == POSITIONS:
        return apply_positions(model)
    mode = mode_named(name)
    roots = list(anatomy.transformers_models(model)) if isinstance(model, nn.Module) else []
    if not roots:
        raise BadInput(
            f"No transformers model in {type(model).__name__}: its attention has no switch. "
            f"For the whole process: {_install_hint(mode)}."
        )
    _require_available(mode, model)
    with contextlib.ExitStack() as done:  # what was done is undone if the next fails
        for root in roots:
            done.callback(_apply(root, mode))
        return Handle(name, done.pop_all().close)


def put_in_place(model: nn.Module, name: str) -> Handle:
    """`apply`, or `install` if the model's class chooses its attention on construction, as Falcon does."""
    try:
        return apply(model, name)
    except BadInput:
        if name == POSITIONS or not mode_named(name).process_wide:
            raise
        return install(name)


def _apply(model: Any, mode: Mode) -> Callable[[], None]:
    """Set a mode on one transformers model; the returned function removes it."""
    repair = mode.repair()
    spared = anatomy.without_sdpa(model) if mode.name == "sdpa" or repair is not None else []
    if among(model.config, spared):
        raise BadInput(
            f"{type(model).__name__} cannot use SDPA, so '{mode.name}' cannot be set, and SDPA's treatment of "
            "fully masked rows does not affect it."
        )
    # Code that asks for the exact name takes any other for something else than SDPA: there the name stays "sdpa",
    # the modules are marked, and the layer on the entry of that name does the rest.
    marked = repair is not None and anatomy.asks_for_exact_name(model)
    key = "sdpa" if marked else mode.name
    if repair is not None:
        registration.register(mode.name, repair)
    used = [(owner, config) for owner, config in anatomy.configs_in_use(model) if not among(config, spared)]
    everything = anatomy.with_parts([config for _, config in used])
    entry = _Applied(key, [(config, set_attention(config)) for config in everything], getattr(model, layers.MARK, None))
    try:
        with errors_only("transformers.modeling_utils"):
            _set(model, key, spared)
        _read_back(model, mode, key, used)
    except (ValueError, ImportError, KeyError, OSError) as refusal:
        _restore(entry)
        reason = str(refusal).split(". ", maxsplit=1)[0].rstrip(".")
        raise BadInput(f"{type(model).__name__} refuses attention mode '{mode.name}': {reason}.") from refusal
    except BadInput:
        _restore(entry)
        raise
    release = layers.hold(function=False) if marked else None
    anatomy.mark(model, mode.name if marked else None)
    _APPLIED.setdefault(model, []).append(entry)
    held = weakref.ref(model)

    def remove() -> None:
        alive = held()
        if alive is not None:
            _remove(alive, entry)
        if release is not None:
            release()

    return remove


def _set(model: Any, name: str, spared: list[Any]) -> None:
    """Ask transformers to switch; before 4.56 it has no method, and reads the configs at each forward."""
    if hasattr(model, "set_attn_implementation"):
        parts = {key: getattr(model.config, key, None) for key in getattr(model.config, "sub_configs", {})}
        kept = {key: set_attention(part) for key, part in parts.items() if among(part, spared)}
        # A part that is not named in a dict keeps what it has, so all others are named.
        model.set_attn_implementation({"": name, **dict.fromkeys(parts, name), **kept} if kept else name)
        return
    for owner in model.modules():
        if not anatomy.is_transformers(owner) or not anatomy.looks_attention_up(owner):
            continue
        config: Any = owner.config
        if not among(config, spared):
            config._attn_implementation_internal = name  # noqa: SLF001 - as later versions of transformers do


def _read_back(model: Any, mode: Mode, key: str, used: list[tuple[nn.Module, Any]]) -> None:
    """Refuse a mode that did not take effect everywhere, and name the way that works: transformers only warns."""
    start = f"{type(model).__name__} does not let its attention be switched to '{mode.name}'"
    way = f'What works: {_install_hint(mode)}, or load the model with attn_implementation="eager".'
    kept = {type(owner).__name__: set_attention(config) for owner, config in used if set_attention(config) != key}
    if kept:
        names = ", ".join(f"{owner} stays at {old}" for owner, old in kept.items())
        if set(kept.values()) == {"eager"} and not anatomy.calls_sdpa(model):
            raise BadInput(f"{start} ({names}): it has its own attention that never calls SDPA, so it is not affected.")
        raise BadInput(f"{start} ({names}): its code does not look its attention up by name. {way}")
    if mode.repair() is not None and anatomy.calls_sdpa(model):
        raise BadInput(f"{start} everywhere: its code calls F.scaled_dot_product_attention itself. {way}")


def _restore(entry: _Applied) -> None:
    """Restore the names, except where another one has been set since."""
    for config, old in entry.before:
        if set_attention(config) == entry.key:
            config._attn_implementation_internal = old  # noqa: SLF001 - the setter would overwrite sub-configs


def _remove(model: nn.Module, entry: _Applied) -> None:
    """Take one entry out: the last one restores configs and mark, an inner one hands down what it found."""
    stack = _APPLIED[model]
    position = next(i for i, other in enumerate(stack) if other is entry)
    del stack[position]
    if position == len(stack):
        _restore(entry)
        anatomy.mark(model, entry.mark_before)
    else:
        stack[position].before, stack[position].mark_before = entry.before, entry.mark_before


def _install_hint(mode: Mode) -> str:
    return f'mpsdiag.install("{mode.name if mode.process_wide else "safe_sdpa"}")'


def _require_available(mode: Mode, model: nn.Module) -> None:
    weight = next(model.parameters(), None)
    if weight is not None:
        dtype = str(weight.dtype).removeprefix("torch.")
        reason = mode.unavailable(str(weight.device), dtype, training=False)
        if reason is not None:
            raise BadInput(f"Attention mode '{mode.name}' is not available here: {reason}.")
