"""Another model on an endpoint that is there, by UpdateEndpoint, which moto lacks."""

from __future__ import annotations

import json

import deployable
import pytest
from botocore.stub import ANY, Stubber

from xlnet_fast.deploy.endpoint import deploy
from xlnet_fast.deploy.endpoint_plan import EndpointPlan, Names
from xlnet_fast.errors import ArgumentError, XLNetFastError


@pytest.fixture
def updating(cloud, folder):
    """An endpoint with a model; an update changes its config, unless ``fails`` says otherwise."""
    deploy(deployable.deployment(folder), cloud.make)
    there = cloud.aws.sagemaker.describe_endpoint(EndpointName="reviews")

    class Updating:
        old, configs, fails = there["EndpointConfigName"], [], False

    def describe(parsed):
        if "EndpointConfigName" in parsed and Updating.configs and not Updating.fails:
            parsed["EndpointConfigName"] = Updating.configs[-1]
        if Updating.fails and Updating.configs:
            parsed["FailureReason"] = "no room"

    def update():
        Updating.configs.append(cloud.asked_for("UpdateEndpoint")[-1]["EndpointConfigName"])
        return {"EndpointArn": there["EndpointArn"]}

    cloud.describes(describe)
    cloud.answers(cloud.aws.sagemaker, "UpdateEndpoint", update)
    return Updating


def other(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    return folder


def test_an_update_takes_the_place_of_model_and_config(cloud, folder, updating, monkeypatch):
    (model,) = cloud.names("model")
    later = Names("reviews", "reviews-later", "reviews-later")
    monkeypatch.setattr(Names, "now", lambda name: later)
    assert deploy(deployable.deployment(other(folder)), cloud.make) == "body"
    assert updating.configs == [later.config]
    assert cloud.names("model") == [later.model] != [model]
    assert cloud.names("config") == [later.config]
    assert len(cloud.objects()) == 2  # the way back is not closed


def test_a_first_answer_that_fails_leads_back_to_the_old_config(
    cloud, folder, updating, monkeypatch
):
    before = (cloud.names("model"), cloud.names("config"), cloud.objects())
    monkeypatch.setattr(Names, "now", lambda name: Names(name, "reviews-b", "reviews-b"))
    cloud.refuses(cloud.aws.runtime, "InvokeEndpoint", "ModelError", "500")
    with pytest.raises(XLNetFastError, match="what had been made was taken back"):
        deploy(deployable.deployment(other(folder)), cloud.make)
    assert updating.configs == ["reviews-b", updating.old]
    assert (cloud.names("model"), cloud.names("config"), cloud.objects()) == before


def test_an_update_that_sagemaker_took_back_is_a_failure(cloud, folder, updating, monkeypatch):
    before = (cloud.names("model"), cloud.names("config"), cloud.objects())
    monkeypatch.setattr(Names, "now", lambda name: Names(name, "reviews-b", "reviews-b"))
    updating.fails = True
    with pytest.raises(XLNetFastError, match="SageMaker went back to what was there before: no r"):
        deploy(deployable.deployment(other(folder)), cloud.make)
    assert updating.configs == ["reviews-b"]  # nobody has to go back
    assert (cloud.names("model"), cloud.names("config"), cloud.objects()) == before


def test_an_endpoint_at_work_is_not_updated(cloud, folder, updating):
    cloud.describes(lambda parsed: parsed.update(EndpointStatus="Updating"))
    with pytest.raises(ArgumentError, match="is Updating, and only one in service"):
        deploy(deployable.deployment(other(folder)), cloud.make)
    assert len(cloud.names("model")) == 1


@pytest.mark.parametrize(
    ("running", "scales", "rolling"), [(1, False, False), (2, False, True), (4, True, True)]
)
def test_the_request_is_one_that_sagemaker_takes(cloud, folder, running, scales, rolling):
    """Several instances are replaced in steps; where they scale, their number stays."""
    plan = EndpointPlan(deployable.deployment(folder), Names("a", "b", "c"), None)
    request = plan.update_request(running, scales)
    assert ("DeploymentConfig" in request) == rolling
    assert request["RetainAllVariantProperties"] == scales
    expected = {"EndpointName": "a", "EndpointConfigName": "c", "RetainAllVariantProperties": ANY}
    if rolling:
        expected["DeploymentConfig"] = ANY
    with Stubber(cloud.aws.sagemaker) as stubber:
        arn = "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/a"
        stubber.add_response("update_endpoint", {"EndpointArn": arn}, expected)
        assert cloud.aws.sagemaker.update_endpoint(**request)["EndpointArn"] == arn


def test_a_serverless_endpoint_is_updated_without_steps(folder):
    plan = EndpointPlan(deployable.serverless(folder), Names("a", "b", "c"), None)
    assert "DeploymentConfig" not in plan.update_request(0, False)


def test_an_update_that_is_refused_names_the_way_out(cloud, folder, updating):
    cloud.refuses(
        cloud.aws.sagemaker, "CreateModel", "ValidationException", "Cannot create already existing"
    )
    with pytest.raises(XLNetFastError, match="choose another --name"):
        deploy(deployable.deployment(other(folder)), cloud.make)
    assert updating.configs == []
