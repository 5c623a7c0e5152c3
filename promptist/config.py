"""Configs: dataclasses, filled from YAML files and dotted overrides, checked strictly.

Defaults of the dataclass < `base:` file < YAML file < overrides `key=value`. Every key must be known and of
its type; anything else is one sentence that names file and key. The dataclasses check their own values in
`__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from promptist.errors import UserError

T = TypeVar("T")
BASE = "base"
_ABSENT = object()


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """The config `cls` from the YAML file `path` (which may name a `base:` file relative to itself) and
    `key=value`s.

    Raises UserError on a missing or broken file, an unknown key, a value of the wrong type, a missing value.
    """
    merged = OmegaConf.structured(cls)
    for file, content in _read_chain(Path(path)):
        _check_keys(cls, content, file=str(file))
        merged = _merge(cls, merged, content, where=f"in {file}")
    for text in overrides:
        dotted, value = _parse_override(text)
        _check_keys(cls, _nest(dotted, value), file=f"the override `{text}`")
        merged = _update(cls, merged, dotted, value, where=f"in the override `{text}`")
    return _to_object(cls, merged, str(path))


def keys(path: str | Path) -> set[str]:
    """Names of the top-level keys that the YAML file `path` and its bases set. UserError as `load`."""
    return {name for _, content in _read_chain(Path(path)) for name in content}


def to_yaml(cfg: Any) -> str:
    """The resolved config as YAML text; `load` of it gives an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg), resolve=True)


def differences(a: Any, b: Any) -> list[str]:
    """Sorted dotted keys in which two configs (dataclasses or plain dicts) differ; list items by index."""
    left, right = flatten(a), flatten(b)
    return sorted(k for k in left.keys() | right.keys() if left.get(k, _ABSENT) != right.get(k, _ABSENT))


def flatten(cfg: Any) -> dict[str, Any]:
    """`{"dotted.key": leaf}` of a config; a list of sections is keyed by index, a list of values is one
    leaf."""
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        cfg = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True)
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            items: Iterable[tuple[Any, Any]] = node.items()
        elif isinstance(node, (list, tuple)) and any(isinstance(item, dict) for item in node):
            items = enumerate(node)
        else:
            flat[prefix] = list(node) if isinstance(node, tuple) else node
            return
        for name, value in items:
            walk(value, f"{prefix}.{name}" if prefix else str(name))

    walk(cfg, "")
    return flat


def check_resume(old_yaml: str | Path, new_cfg: Any, may_change: Collection[str] = ()) -> list[str]:
    """Check that a resumed run's config differs from its `config.yaml` only below the dotted keys
    `may_change`.

    Returns the keys that did change; raises UserError naming each that must not, with its old and new value.
    """
    old = flatten(_read_yaml(Path(old_yaml)))
    new = flatten(new_cfg)
    changed = differences(old, new)
    refused = [
        k for k in changed if not any(k == allowed or k.startswith(allowed + ".") for allowed in may_change)
    ]
    if refused:
        listed = "; ".join(
            f"{k} was {_show(old.get(k, _ABSENT))} and is now {_show(new.get(k, _ABSENT))}" for k in refused
        )
        raise UserError(
            f"{old_yaml} belongs to a run with another config: {listed}; restore the value or "
            "give the run another name"
        )
    return changed


# ---------------------------------------------------------------------------------------------------- reading


def _read_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The file's content after that of its base, most basic first."""
    if path.resolve() in seen:
        raise UserError(f"{path} is its own `{BASE}`: break the circle")
    content = _read_yaml(path)
    base = content.pop(BASE, None)
    if base is None:
        return [(path, content)]
    if not isinstance(base, str):
        raise UserError(f"`{BASE}` in {path} must be the path of a YAML file, not {base!r}")
    return [*_read_chain(path.parent / base, (*seen, path.resolve())), (path, content)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise UserError(f"the config file {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a config file") from None
    except PermissionError:
        raise UserError(f"the config file {path} may not be read: check its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the config file {path} is not UTF-8 text: {error}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"the config file {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"the config file {path} must hold `key: value` lines, not a {type(content).__name__}"
        )
    for name in content:
        if not isinstance(name, str):
            raise UserError(f"the key {name!r} in {path} must be text")
    return typing.cast("dict[str, Any]", content)


def _parse_override(text: str) -> tuple[str, Any]:
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise UserError(f"the override `{text}` must have the form key=value, e.g. run.seed=1")
    dotted = dotted.strip()
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"the value of the override `{text}` is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    return dotted, typing.cast("dict[str, Any]", value)["value"]


def _nest(dotted: str, value: Any) -> Any:
    for name in reversed(dotted.split(".")):
        value = {name: value}
    return value


# ----------------------------------------------------------------------------------------------------
# checking


def _check_keys(cls: type, content: dict[str, Any], file: str) -> None:
    """Refuse the first key of `content` that no field of the dataclass tree `cls` has."""

    def walk(hint: Any, node: Any, prefix: str) -> None:
        hint = _section(hint)
        if dataclasses.is_dataclass(hint) and isinstance(node, dict):
            hints = typing.get_type_hints(hint)
            known = [f.name for f in dataclasses.fields(hint)]
            for name, value in node.items():
                dotted = f"{prefix}.{name}" if prefix else str(name)
                if name not in known:
                    raise UserError(f"unknown key `{dotted}` in {file}{_nearest(str(name), prefix, known)}")
                walk(hints[name], value, dotted)
            return
        args = typing.get_args(hint)
        if typing.get_origin(hint) is list and args:
            items = (
                enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else ()
            )
            for i, item in items:
                walk(args[0], item, f"{prefix}.{i}")
        elif typing.get_origin(hint) is dict and isinstance(node, dict) and len(args) == 2:
            for name, item in node.items():
                walk(args[1], item, f"{prefix}.{name}")

    walk(cls, content, "")


def _nearest(name: str, prefix: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f": did you mean `{f'{prefix}.' if prefix else ''}{close[0]}`?"
    return f": {f'`{prefix}`' if prefix else 'the config'} has {', '.join(known)}"


def _section(hint: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _merge(cls: type, config: Any, content: dict[str, Any], where: str, prefix: str = "") -> Any:
    """Merge leaf by leaf, so that a refused value is known by its full key."""
    for name, value in content.items():
        dotted = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and dataclasses.is_dataclass(_section(_hint_of(cls, dotted))):
            config = _merge(cls, config, value, where, dotted)
        else:
            config = _update(cls, config, dotted, value, where)
    return config


def _update(cls: type, config: Any, dotted: str, value: Any, where: str) -> Any:
    hint = _hint_of(cls, dotted)
    section = _section(hint)
    if dataclasses.is_dataclass(section) and value is None and section is hint:
        raise UserError(f"`{dotted}` {where} must be a section of keys, not empty")
    try:
        if _mixes_up_booleans(section, value):
            raise TypeError
        _open_sections(cls, config, dotted)
        OmegaConf.update(config, dotted, value, merge=True)
    except (OmegaConfBaseException, TypeError, ValueError, IndexError) as error:
        # The sentence of OmegaConf tells which item of a list or section it refused.
        reason = f" ({(str(error).splitlines() or [''])[0]})" if isinstance(value, (list, dict)) else ""
        raise UserError(
            f"`{dotted}` {where} must be {_describe(hint)}, not {_show(value)}{reason}"
        ) from error
    return config


def _mixes_up_booleans(hint: Any, value: Any) -> bool:
    """Whether OmegaConf would read 7 as true, or true as 1."""
    if hint is bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return hint in (int, float) and isinstance(value, bool)


def _open_sections(cls: type, config: Any, dotted: str) -> None:
    """Give the sections above `dotted` that are missing, or null (`X | None`), their dataclass's defaults.

    OmegaConf.update sets keys only in sections that are there.
    """
    names = dotted.split(".")
    for depth in range(1, len(names)):
        above, name = names[: depth - 1], names[depth - 1]
        node = OmegaConf.select(config, ".".join(above)) if above else config
        section = _section(_hint_of(cls, ".".join(names[:depth])))
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(section):
            continue
        if OmegaConf.is_missing(node, name) or node.get(name) is None:
            node[name] = OmegaConf.structured(section)


def _hint_of(cls: type, dotted: str) -> Any:
    hint: Any = cls
    for name in dotted.split("."):
        hint = _section(hint)
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint)[name]
        else:
            args = typing.get_args(hint)
            hint = args[-1] if args else Any
    return hint


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in names:
        return names[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is list:
        return f"a list, each item {_describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)} items, each {_describe(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a section of keys"
    return str(getattr(hint, "__name__", hint))


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else "null" if value is None else repr(value)


def _to_object(cls: type[T], config: Any, path: str) -> T:
    try:
        result = OmegaConf.to_object(config)
    except UserError:
        raise
    except MissingMandatoryValue as error:
        missing = ", ".join(f"`{k}`" for k in sorted(OmegaConf.missing_keys(config)))
        raise UserError(f"{path} must set {missing}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {(str(error).splitlines() or [''])[0]}") from error
    assert isinstance(result, cls)
    return result
