"""What commands print with --json, held against docs/schemas."""

import json

import jsonschema
from documents import ROOT

SCHEMAS = ROOT / "docs/schemas"


def strict(schema):
    """The schema with every object closed: a key that it does not name is an error."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(each) for key, each in schema.items()}
    return {**closed, "additionalProperties": False} if isinstance(closed.get("properties"), dict) else closed


def check(printed):
    schema = strict(json.loads((SCHEMAS / f"{printed['kind']}.json").read_text()))
    jsonschema.validate(printed, schema, jsonschema.Draft202012Validator)
