"""The service as OpenAPI 3.1, with the columns of the run that it serves."""

from typing import Any

from fusionnet.serving.described import DISTRIBUTION, versions
from fusionnet.serving.designs import DesignOptions
from fusionnet.serving.questions import OPTIONS, Kind
from fusionnet.serving.records import KnownColumns

_SUMMARIES: dict[Kind, str] = {
    "predict": "predictions in raw units, and how far each can be trusted",
    "reward": "the reward of each row, and the terms and penalties that it is the sum of",
}
_ERRORS = {
    "408": "the body did not arrive in time",
    "413": "more bytes, rows or new strings than a request may have",
    "415": "the body is not application/json, or it is compressed",
    "422": "rows or options that are wrong: all of them, with row numbers",
    "500": "the service failed",
    "503": "the service is busy, or its model is still being loaded; see the header Retry-After",
}


def openapi_of(schema: dict[str, Any], known: KnownColumns) -> dict[str, Any]:
    """Return the document; `schema` is that of `described.schema_of`."""
    posts = {f"/{kind}": {"post": _post(kind, schema)} for kind in OPTIONS}
    gets = {
        "/health": "whether the model is loaded (503 while it is not), and which run it is",
        "/schema": "columns, units, bounds, categories, tasks, limits, and an example",
        "/openapi.json": "this document",
        "/docs": "a page for people",
    }
    posts["/design"] = {"post": _design_post()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{schema['run']}, epoch {schema['epoch']}",
            "version": versions()[DISTRIBUTION],
            "description": schema["note"] or "predictions and rewards of a trained run",
        },
        "paths": posts | {path: {"get": _get(path, what)} for path, what in gets.items()},
        "components": {
            "schemas": {
                "Row": _row(schema, known),
                "Prediction": _prediction(schema),
                "Reward": _reward(schema),
                "Error": _error(),
                "design_request": DesignOptions.model_json_schema(),
                **{f"{kind}_request": _request(kind) for kind in OPTIONS},
                **{f"{kind}_answer": _answer(kind) for kind in OPTIONS},
            }
        },
    }


def _get(path: str, what: str) -> dict[str, Any]:
    kind = "text/html" if path == "/docs" else "application/json"
    return {
        "summary": what,
        "operationId": path.strip("/").replace(".", "_"),
        "responses": {"200": {"description": "as it says", "content": {kind: {}}}},
    }


def _post(kind: Kind, schema: dict[str, Any]) -> dict[str, Any]:
    refused = {"application/json": {"schema": _ref("Error")}}
    asked = {"schema": _ref(f"{kind}_request"), "example": schema["example"]}
    answered = {"application/json": {"schema": _ref(f"{kind}_answer")}}
    return {
        "summary": _SUMMARIES[kind],
        "operationId": kind,
        "requestBody": {"required": True, "content": {"application/json": asked}},
        "responses": {
            "200": {"description": "one answer per row, in their order", "content": answered},
            **{code: {"description": what, "content": refused} for code, what in _ERRORS.items()},
        },
    }


def _design_post() -> dict[str, Any]:
    """Return what /design is asked; designs are rows, each beside what the run says of it."""
    refused = {"application/json": {"schema": _ref("Error")}}
    design = {
        "type": "object",
        "properties": {
            "place": {"type": "integer"},
            "row": _ref("Row"),
            "said": {"type": "object", "description": "predictions, intervals, reward and parts"},
        },
    }
    answer = {
        "type": "object",
        "properties": {
            "judged": {"type": "integer"},
            "designs": {"type": "array", "items": design},
        },
    }
    return {
        "summary": "the most rewarded designs that differ, for one patient, who is given as a row",
        "operationId": "design",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("design_request")}},
        },
        "responses": {
            "200": {
                "description": "designs, the most rewarded first",
                "content": {"application/json": {"schema": answer}},
            },
            **{code: {"description": what, "content": refused} for code, what in _ERRORS.items()},
        },
    }


def _request(kind: Kind) -> dict[str, Any]:
    options = OPTIONS[kind].model_json_schema()["properties"]
    rows = {"type": "array", "items": _ref("Row"), "description": "one object per row"}
    columns = {
        "type": "object",
        "additionalProperties": {"type": "array"},
        "description": "or one list per column; then the answer has one list per column too",
    }
    return {
        "type": "object",
        "properties": {"rows": rows, "columns": columns, **options},
        "oneOf": [{"required": ["rows"]}, {"required": ["columns"]}],
        "additionalProperties": False,
    }


def _answer(kind: Kind) -> dict[str, Any]:
    item = "Prediction" if kind == "predict" else "Reward"
    return {
        "type": "object",
        "properties": {
            "run": {"type": "string"},
            "run_id": {"type": "string"},
            "epoch": {"type": "integer"},
            "rows": {"type": "array", "items": _ref(item)},
            "columns": {"type": "object", "additionalProperties": {"type": "array"}},
        },
        "required": ["run", "run_id", "epoch"],
    }


def _row(schema: dict[str, Any], known: KnownColumns) -> dict[str, Any]:
    """Return the schema of one row; other columns of the training table are left aside."""
    properties: dict[str, Any] = {}
    required = []
    for column in schema["strings"]:
        what = f"{column['kind']}; {column['num_known']:,} strings are known from training"
        properties[column["column"]] = {"type": "string", "description": what}
    for column in schema["numeric"]:
        properties[column["column"]] = _number(column)
    for column in schema["categories"]:
        of_values = {"enum": column["values"]} if column["other"] is None else {}
        properties[column["column"]] = {
            "description": f"one of: {', '.join(column['values'][:20])}",
            **({"type": "string"} | of_values),
        }
    for columns in (schema["strings"], schema["numeric"], schema["categories"]):
        required += [column["column"] for column in columns if column["if_null"] is None]
    return {
        "type": "object",
        "properties": {name: properties[name] for name in known.read},
        "required": required,
    }


def _number(column: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a number, with the bounds that its config has."""
    bounds = {"minimum": column["low"], "maximum": column["high"]}
    low, high, unit = column["train_low"], column["train_high"], column["unit"]
    return {
        "type": "number",
        "description": f"{unit + '; ' if unit else ''}train rows have {low:.6g} to {high:.6g}",
        **{key: value for key, value in bounds.items() if value is not None},
    }


def _prediction(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one row's predictions, without what is added on request."""
    names_of_classes = {
        f"predicted_{task['column']}" for task in schema["tasks"] if task["classes"]
    }
    names_of_classes -= {
        f"predicted_{task['column']}" for task in schema["tasks"] if task["kind"] == "binary"
    }
    properties = {
        name: {"type": ["string" if name in names_of_classes else "number", "null"]}
        for name in schema["predictions"]
    }
    return {"type": "object", "properties": properties | _marks()}


def _reward(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one row's reward and its parts; of a run without any, of none."""
    numbers = {name: {"type": ["number", "null"]} for name in schema["rewards"] or ()}
    return {"type": "object", "properties": numbers | _marks()}


def _marks() -> dict[str, Any]:
    return {
        "known": {
            "type": ["boolean", "null"],
            "description": "training saw the row's strings and categories",
        },
        "outside": {
            "type": ["boolean", "null"],
            "description": "a number of it lies outside of the train rows'",
        },
        "reason": {
            "type": ["string", "null"],
            "description": "why it is not known, is outside, or has no prediction",
        },
    }


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "error": {"type": "string", "description": "the error's name"},
            "message": {"type": "string"},
            "violations": {
                "type": "array",
                "items": {"type": "string"},
                "description": "all that is wrong, each with its count and first rows",
            },
        },
        "required": ["error", "message", "violations"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
