"""The OpenAPI description is kept: schemathesis sends what it allows and what it does not, to a real server."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    negative_data_rejection,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_description_names(server, mode):
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:
        try:
            cases = operation.as_strategy(generation_mode=mode)
            run(cases)
        except Unsatisfiable:  # what takes no parameter cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE


def run(cases):
    @given(case=cases)
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    def send(case):
        case.call_and_validate(checks=CHECKS)

    send()
