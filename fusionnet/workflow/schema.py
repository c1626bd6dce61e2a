"""The JSON Schema of a config file, by which editors complete keys and mark what is wrong."""

import json
from typing import Any

from fusionnet.experiment import Experiment

SCHEMA_FILE = "fusionnet.schema.json"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file as it is written, which may extend another.

    What a file that extends another may leave to it is required only of one that does not.
    """
    schema = Experiment.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"] = {
        "extends": {"type": "string", "description": "the config file that this one starts from"},
        **schema["properties"],
    }
    required = {"required": schema.pop("required")}
    schema["if"], schema["else"] = {"required": ["extends"]}, required
    schema["$defs"]["DataConfig"].pop("required", None)
    return schema


def schema_text() -> str:
    """Return the JSON Schema as a file holds it."""
    return json.dumps(config_schema(), indent=1) + "\n"
