"""Valid and invalid requests generated from our OpenAPI document get documented answers."""

from pathlib import Path

import pytest

from tests.support.api import RunningApi
from tests.support.clients import Person, code_of, get
from tests.support.openapi import explore


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """The API with sources by URL and webhooks."""
    return shared_linked_api


def test_no_generated_request_gets_an_undocumented_answer(api: RunningApi, tmp_path: Path) -> None:
    """All checks of schemathesis: statuses, types, bodies, methods, missing headers, ignored tokens, accepted bad data.

    `make schemathesis` tries hundreds of times as many, in more ways.
    """
    found = explore(api, tmp_path, ["--seed", "7", "--max-examples", "1", "--phases", "fuzzing"], each=2)
    assert found.returncode == 0, found.stdout[-8000:]
    assert "passed" in found.stdout


def test_the_answer_to_a_wrong_method_lists_the_allowed_ones(api: RunningApi) -> None:
    answer = api.client().request("DELETE", "/api/geo-jobs")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


def test_every_refusal_is_documented_with_its_codes(api: RunningApi) -> None:
    """The document names all codes, so it suffices to write a client."""
    document = get(f"{api.base_url}/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            refused = operation["responses"]["4XX"]["content"]["application/problem+json"]["schema"]
            assert "lease_lost" in refused["properties"]["code"]["enum"]


def test_an_unknown_task_type_is_named_whatever_the_other_keys(api: RunningApi) -> None:
    """With a deduplication key it was answered by 503 and the advice to retry."""
    person = Person(api)
    for more in ({}, {"dedupKey": "a"}):
        answer = person.http.post("/api/geo-jobs", json={"taskType": "nobody_knows"} | more)
        assert code_of(answer) == (422, "unknown_task_type")


def test_a_number_is_no_time_and_a_boolean_no_number(api: RunningApi) -> None:
    person = Person(api)
    for wrong in ({"runAt": 0}, {"notifyAt": 1e9}, {"priority": True}, {"priority": "7"}):
        answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png"} | wrong)
        assert code_of(answer) == (422, "validation"), wrong
