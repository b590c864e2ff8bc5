"""YAML without its surprises: what recipes are written in."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: plain data, 5e-2 a number, no aliases (a few lines of them unfold into gigabytes).

    What YAML 1.1 alone takes for a number or a date is text: 010 is not 8, 1:30 not 90, 2026-01-31 not a date. A field
    that wants a number then refuses it.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r:.80} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as the same text."""


_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT_TAG, _FLOAT_TAG, _DATE_TAG = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag not in (_INT_TAG, _FLOAT_TAG, _DATE_TAG)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
# On top of its own, so that it also quotes what another reader of YAML would take for a number.
_Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """YAML text to plain data. Raises ValueError with a reason, whatever PyYAML's constructors raise."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except Exception as error:  # YAMLError, and KeyError, AttributeError and others for '!!bool x' and the like
        raise ValueError(f"{error}" or type(error).__name__) from error


def write_yaml(value: Any, flow: bool = False) -> str:
    """YAML text that `read_yaml` reads back to equal data. flow: on one line, as after `=` in an override."""
    if flow:
        return yaml.dump(value, Dumper=_Dumper, default_flow_style=True).strip().removesuffix("...").strip()
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
