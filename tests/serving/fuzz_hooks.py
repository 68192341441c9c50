"""Hooks of schemathesis for `make fuzz`: names of models that are there, records of their fields.

Requests alone are changed; the responses that the description promises stay as they are.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis

NAMES = os.environ["FUZZ_MODELS"].split(",")
TEXT = {"type": "string"}
NUMBER, WHOLE, TRUTH = ({"type": kind} for kind in ("number", "integer", "boolean"))
FIELDS = (
    ({"text": TEXT, "text_pair": TEXT}, ["text"]),
    ({"question": TEXT, "context": TEXT}, ["question", "context"]),
    ({"passage": TEXT, "choices": {"type": "array", "items": TEXT}}, ["passage", "choices"]),
    ({"tokens": {"type": "array", "items": TEXT}}, ["tokens"]),
)
RECORD = {
    "anyOf": [
        *({"type": "object", "properties": properties, "required": required,
           "additionalProperties": False} for properties, required in FIELDS),
        {"type": "object"}, TEXT,
    ]
}  # fmt: skip
PARAMETERS = {
    # Short texts, or a run would be of few.
    "max_new_tokens": {**WHOLE, "maximum": 8}, "num_beams": {**WHOLE, "maximum": 4},
    "num_return_sequences": {**WHOLE, "maximum": 4},
    "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE, "repetition_penalty": NUMBER,
    "do_sample": TRUTH, "seed": WHOLE, "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT}]},
    "threshold": NUMBER, "n_best": WHOLE, "max_answer_length": WHOLE, "no_answer": TRUTH,
    "null_threshold": NUMBER, "pooling": TEXT, "normalize": TRUTH,
}  # fmt: skip


def _some(names: list[str]) -> dict[str, Any]:
    """Half of the names are of models that are there."""
    return {"anyOf": [{"type": "string", "enum": names}, {"type": "string", "minLength": 1}]}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Name models, fields and parameters in the description."""
    del context
    schemas = raw_schema["components"]["schemas"]
    predict = schemas["PredictBody"]["properties"]
    predict["record"] = _or_null(RECORD)
    predict["records"] = _or_null({"type": "array", "items": RECORD, "maxItems": 6})
    predict["parameters"] = {"type": "object", "properties": PARAMETERS}
    schemas["ExplainBody"]["properties"]["record"] = RECORD
    for path, methods in raw_schema["paths"].items():
        for operation in methods.values():
            _name_models(operation)
            content = operation.get("requestBody", {}).get("content", {})
            _shape_body(path, operation, content.get("application/json", {}))


def _name_models(operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            names = ["1"] if parameter["name"] == "version" else NAMES
            parameter["schema"] = _some(names)


def _shape_body(path: str, operation: dict[str, Any], media: dict[str, Any]) -> None:
    properties = media.get("schema", {}).get("properties", {})
    if path == "/v1/completions":
        properties["model"] = _some(["writer", *NAMES])
        for name, most in (("max_tokens", 8), ("n", 4)):
            properties[name]["anyOf"][0]["maximum"] = most
    elif path == "/v1/embeddings":
        properties["model"] = _some(NAMES)
    elif path == "/invocations":
        several = {"anyOf": [RECORD, {"type": "array", "items": RECORD}]}
        body = {"inputs": several, "parameters": {"type": "object", "properties": PARAMETERS}}
        body["stream"] = TRUTH
        media["schema"] = {"anyOf": [RECORD, {"type": "object", "properties": body}, {}]}
        operation.setdefault("parameters", []).append(
            {"in": "header", "name": "X-Amzn-SageMaker-Target-Model", "required": False,
             "schema": _some(NAMES)}
        )  # fmt: skip
    elif path.endswith("/infer"):
        tensor = properties["inputs"]["items"]["properties"]
        tensor["name"] = {"anyOf": [{"enum": ["text", "question", "context", "tokens"]}, TEXT]}
        tensor["datatype"] = {"anyOf": [{"enum": ["BYTES"]}, TEXT]}


@schemathesis.check
def no_fault(ctx: Any, response: Any, case: Any) -> None:
    """No 5xx, but 503 and 504 that say why."""
    del ctx, case
    if response.status_code in (503, 504):
        assert response.json()["error"], f"{response.status_code} without a reason"
    else:
        assert response.status_code < 500, f"{response.status_code}: {response.text[:300]}"
