"""The smallest value that a JSON schema allows: what a model without ideas would answer."""

from collections.abc import Mapping

from transforms.records.records import Json


def smallest(schema: Json, root: Json) -> Json:
    """The smallest value that a simple schema allows; patterns and formats are ignored.

    Args:
      schema: A part of the schema, or all of it.
      root: All of it, for its ``$ref``.

    >>> smallest({"properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer"}}}, {})
    {'a': 'x', 'b': 0}
    """
    if not isinstance(schema, Mapping):
        return None
    reference = schema.get("$ref", "")
    if reference.startswith("#/"):
        target = root
        for key in reference[2:].split("/"):
            target = target[key]
        return smallest(target, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return smallest(schema[choice][0], root)
    kind = schema.get("type", "object" if "properties" in schema else None)
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties") or {}
            return {name: smallest(inner, root) for name, inner in properties.items()}
        case "array":
            return [smallest(schema.get("items"), root)] * schema.get("minItems", 0)
        case "string":
            return "x" * schema.get("minLength", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
    return None
