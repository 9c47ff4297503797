"""YAML as PyYAML's safe loader reads it, except that nothing is passed over: a key stands once, and what is no value has a place."""

from __future__ import annotations

from typing import Any

from yaml import MappingNode, Node, SafeLoader, ScalarNode
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError


class Loader(SafeLoader):
    """Raises YAMLError where the safe loader keeps the last of equal keys, or ends with the ValueError of a date that does not exist."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise ConstructorError(None, None, f"{node.value!r} is no value ({error}); put a text in quotes", node.start_mark) from error

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen:
                    raise ComposerError(None, None, f"the key {key.value!r} stands there twice; keep one of the two", key.start_mark)
                seen.add(key.value)
        return node
