"""`/openapi.json`: every route that is served is in it, with what it takes and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from voxray.results.formats import SERVED
from voxray.serving.config import ServeConfig
from voxray.serving.deployments.ray import RayWorkers
from voxray.serving.http.application import make_app
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.store import JobStore
from voxray.serving.paths import ServicePaths


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The door as it is served, with nobody behind it."""
    folder = tmp_path_factory.mktemp("service")
    config = ServeConfig.model_validate({"models": {"none": {"path": str(folder)}}, "folder": str(folder)})
    store = JobStore(config.database_url)
    readers: Any = None
    workers = RayWorkers(config, [], readers, {})
    yield make_app(Service(config, store, workers, ServicePaths(config.root).prepared(), []))
    store.close()


def operations(app: FastAPI) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, path) -> what the document says of it."""
    paths = app.openapi()["paths"]
    return {(method.upper(), path): told for path, one in paths.items() for method, told in one.items()}


def test_every_route_that_is_served_is_in_the_document_and_no_other(app: FastAPI) -> None:
    served = {
        (method, re.sub(r":\w+}", "}", str(route.path)))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
    }
    assert ("GET", "/info/") in served
    assert ("GET", "/v2") in served
    told = set(operations(app))
    assert told == served - {("HEAD", "/openapi.json")}


def test_operations_have_names_of_their_own_and_say_what_they_do(app: FastAPI) -> None:
    told = operations(app)
    names = [operation["operationId"] for operation in told.values()]
    assert len(names) == len(set(names))
    assert {"study", "new_job", "result", "delete_study", "cancel"} <= set(names)
    linked = re.findall(r"'operationId': '(\w+)', 'parameters'", str(app.openapi()))
    assert set(linked) <= set(names)
    for place, operation in told.items():
        assert operation["summary"], place


def test_operations_name_their_parameters_bodies_and_replies(app: FastAPI) -> None:
    for (method, path), operation in operations(app).items():
        named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path
        if method == "POST" and path not in ("/v1/jobs/{job_id}/cancel", "/activelearning/{strategy}"):
            assert operation.get("requestBody") or "{rest}" in path, path
        replies = operation["responses"]
        assert replies, path
        for status, reply in replies.items():
            assert reply["description"], (path, status)
            assert "content" in reply or status in ("204", "401", "503"), (method, path, status)
    refusals = operations(app)["GET", "/v1/studies/{study_id}"]["responses"]
    assert {"400", "401", "403", "404", "422", "429", "503"} <= set(refusals)
    assert "501" in operations(app)["GET", "/batch/{rest}"]["responses"]


def test_formats_are_told_in_the_services_own_spelling_alone(app: FastAPI) -> None:
    document = app.openapi()
    (form,) = (
        one
        for one in document["paths"]["/v1/jobs/{job_id}/results/{form}"]["get"]["parameters"]
        if one["name"] == "form"
    )
    assert form["schema"]["enum"] == list(SERVED)
    assert document["components"]["schemas"]["JobRequest"]["properties"]["outputs"]["items"]["enum"] == list(SERVED)
    assert "dicom-seg" not in str(document)
