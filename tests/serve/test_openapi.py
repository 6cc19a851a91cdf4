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
from serving import listening

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def whole(bare):
    """The address of a server with all APIs."""
    with listening(bare, a1111=True, public_url="https://example.org", lenient=True) as url:
        yield url


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_description_names(server, mode):
    check(server, mode, CHECKS, least=7)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_of_a_server_with_all_apis_is_too(whole, mode):
    lenient = [each for each in CHECKS if each is not negative_data_rejection]  # it draws although a wish is wrong
    check(whole, mode, lenient, least=27)


def check(url, mode, checks, least):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) >= least
    for operation in operations:
        try:
            cases = operation.as_strategy(generation_mode=mode)
            run(cases, checks)
        except Unsatisfiable:  # what takes no parameter cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE


def run(cases, checks):
    @given(case=cases)
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    def send(case):
        case.call_and_validate(checks=checks)

    send()
