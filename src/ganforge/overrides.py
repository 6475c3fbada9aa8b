"""Arguments of a command as Hydra reads them: `key=value`."""

from hydra.core.override_parser.overrides_parser import OverridesParser

PATHS = ("run", "runs", "resume", "sweep", "checkpoint", "input", "output", "folder", "against", "model.init_from")
"""Options that are paths and nothing else, so that no character in them means anything to Hydra."""


def parts(argument: str) -> tuple[str, str]:
    """Key and value of an override; the key is meant however Hydra is told to add or remove it."""
    key, _, value = argument.partition("=")
    return key.lstrip("+~"), value


def key_of(argument: str) -> str:
    return parts(argument)[0]


def literal(argument: str) -> str:
    """An override with its value quoted if it is a path, or has a "=" in it, as the folders of sweeps do."""
    key, equals, value = argument.partition("=")
    is_path = key.lstrip("+") in PATHS or ("=" in value and not set(value) & set("'\"[]{}(),"))
    if key.startswith("-") or not equals or not is_path or value == "null" or value[:1] in ("'", '"'):
        return argument
    if key == "runs" and value[:1] + value[-1:] == "[]":  # a list, whose names may need quotes
        names = ",".join(quoted(name.strip()) for name in value[1:-1].split(","))
        return argument if set(value) & set("'\"") else f"{key}=[{names}]"
    return f"{key}={quoted(value)}"


def unquoted(value: str) -> str:
    return str(OverridesParser.create().parse_override(f"key={value}").value())


def quoted(value: object) -> str:
    """A value that Hydra takes literally on the command line."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
