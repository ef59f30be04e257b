"""The API against its own description: no request, valid or not, is answered by a fault of the server."""

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
#: All but the stream of the status, which never ends.
OPERATIONS = [
    *(("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")),
    *(("POST", path) for path in ("/tokenize", "/detokenize")),
    *(("GET", path) for path in ("/v1/models", "/v1/models/{name}", "/v1/status", "/health", "/metrics")),
]


@pytest.fixture
def description(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_that_the_description_has(description, method, path):
    operation = description[path][method]
    for mode in MODES if method == "POST" else MODES[:1]:

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=20, suppress_health_check=list(HealthCheck))
        def answered_as_described(case):
            case.call_and_validate(checks=CHECKS, timeout=30)

        answered_as_described()


def test_every_operation_is_described_and_has_no_form_of_errors_but_openais(server):
    described = server.get("/openapi.json").json()["paths"]
    found = {(method.upper(), path) for path, operations in described.items() for method in operations}
    assert found == {*OPERATIONS, ("GET", "/v1/status/stream")}
    for path, operations in described.items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorBody"}
