"""Deployments from the first call to the last, and what is left where one of them fails."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile

import boto3
import deployable
import pytest

from xlnet_fast.deploy.endpoint import deploy
from xlnet_fast.deploy.endpoint_plan import Names, tags_of
from xlnet_fast.errors import ArgumentError, XLNetFastError


def tags(client, arn):
    return {tag["Key"]: tag["Value"] for tag in client.list_tags(ResourceArn=arn)["Tags"]}


def put(cloud, folder, **changes):
    return deploy(deployable.deployment(folder, **changes), cloud.make)


def test_a_deployment_makes_archive_model_config_and_endpoint(cloud, folder, capsys):
    assert put(cloud, folder, env=("LIMIT=3",)) == "body"
    (key,), (name,) = cloud.objects(), cloud.names("model")
    assert key.startswith("deployments/reviews/")
    assert key.endswith("/model.tar.gz")
    assert name.startswith("reviews-")
    model = cloud.sagemaker.describe_model(ModelName=name)
    container = model["PrimaryContainer"]
    assert container["Image"] == deployable.IMAGE
    assert container["ModelDataUrl"] == f"s3://{deployable.BUCKET}/{key}"
    assert container["Environment"] == {"LIMIT": "3"}
    endpoint = cloud.sagemaker.describe_endpoint(EndpointName="reviews")
    config = cloud.sagemaker.describe_endpoint_config(
        EndpointConfigName=endpoint["EndpointConfigName"]
    )
    (variant,) = config["ProductionVariants"]
    assert (variant["ModelName"], variant["InstanceType"]) == (name, "ml.c5.xlarge")
    for arn in (model["ModelArn"], config["EndpointConfigArn"], endpoint["EndpointArn"]):
        assert tags(cloud.sagemaker, arn) == tags_of("reviews")
    told = capsys.readouterr().err
    assert "COSTS: 1 x ml.c5.xlarge, by the second" in told
    assert "xlnet-fast deploy delete reviews" in told


def test_the_archive_arrives_whole_tagged_and_with_its_sum(cloud, folder):
    put(cloud, folder)
    (key,) = cloud.objects()
    found = cloud.s3.get_object(Bucket=deployable.BUCKET, Key=key, ChecksumMode="ENABLED")
    content = found["Body"].read()
    digest = hashlib.sha256(content)
    assert found["Metadata"] == {"sha256": digest.hexdigest()}
    assert found["ChecksumSHA256"] == base64.b64encode(digest.digest()).decode()
    tagged = cloud.s3.get_object_tagging(Bucket=deployable.BUCKET, Key=key)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tagged} == tags_of("reviews")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        assert archive.extractfile("config.json").read() == (folder / "config.json").read_bytes()
    assert names == ["config.json", "model.safetensors", "spiece.model"]


def test_a_serverless_endpoint(cloud, folder):
    deploy(deployable.serverless(folder, memory_mb=6144, max_concurrency=9), cloud.make)
    (request,) = cloud.asked_for("CreateEndpointConfig")
    (variant,) = request["ProductionVariants"]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 6144, "MaxConcurrency": 9}
    assert "InstanceType" not in variant


def test_an_asynchronous_endpoint_is_asked_by_way_of_s3(cloud, folder):
    answer = put(cloud, folder, async_output=f"s3://{deployable.BUCKET}/answers")
    assert answer == '{"default": "response"}'
    (request,) = cloud.asked_for("InvokeEndpointAsync")
    assert request["InputLocation"].startswith(f"s3://{deployable.BUCKET}/answers/questions/")
    assert len(cloud.objects()) == 1  # the archive: the question is deleted
    config = cloud.asked_for("CreateEndpointConfig")[0]["AsyncInferenceConfig"]
    assert config == {"OutputConfig": {"S3OutputPath": f"s3://{deployable.BUCKET}/answers"}}


def test_an_archive_of_a_job_is_taken_as_it_is(cloud, capsys):
    place = f"s3://{deployable.BUCKET}/jobs/reviews/model.tar.gz"
    assert put(cloud, place) is None
    (model,) = cloud.names("model")
    found = cloud.sagemaker.describe_model(ModelName=model)["PrimaryContainer"]["ModelDataUrl"]
    assert found == place
    assert cloud.objects() == []
    assert "give --check-input" in capsys.readouterr().err


def test_scaling_is_registered_once_the_endpoint_answers(cloud, folder):
    put(cloud, folder, autoscale="1:4", target=120)
    order = [name for name, _ in cloud.calls]
    assert order.index("InvokeEndpoint") < order.index("RegisterScalableTarget")
    found = cloud.aws.scaling.describe_scaling_policies(ServiceNamespace="sagemaker")
    (policy,) = found["ScalingPolicies"]
    assert policy["ResourceId"] == "endpoint/reviews/variant/main"
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 120
    (target,) = cloud.asked_for("RegisterScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 4)
    assert target["Tags"] == tags_of("reviews")


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "operation"),
    [
        ("sagemaker", "CreateModel"),
        ("sagemaker", "CreateEndpointConfig"),
        ("sagemaker", "CreateEndpoint"),
        ("runtime", "InvokeEndpoint"),
        ("scaling", "RegisterScalableTarget"),
        ("scaling", "PutScalingPolicy"),
    ],
)
def test_a_failure_anywhere_takes_back_what_was_made(cloud, folder, service, operation):
    cloud.refuses(getattr(cloud.aws, service), operation, "ResourceLimitExceeded", "Too many")
    with pytest.raises(XLNetFastError, match=r"Too many .*; what had been made was taken back"):
        put(cloud, folder, autoscale="1:2")
    assert cloud.is_empty()
    found = cloud.aws.scaling.describe_scalable_targets(ServiceNamespace="sagemaker")
    assert found["ScalableTargets"] == []


def test_an_endpoint_that_fails_says_why_and_is_taken_back(cloud, folder):
    states = iter(["Creating", "Creating", "Failed", "Failed"])

    def change(parsed):
        if "EndpointStatus" in parsed and (state := next(states, None)):
            parsed.update(EndpointStatus=state, FailureReason="The container did not pass ping.")

    cloud.describes(change)
    with pytest.raises(XLNetFastError, match=r"did not pass ping; .*/Endpoints/reviews; what had"):
        put(cloud, folder)
    assert cloud.is_empty()


def test_what_cannot_be_taken_back_is_told_and_what_it_uses_stays(cloud, folder):
    cloud.refuses(cloud.aws.runtime, "InvokeEndpoint", "ModelError", "500")
    cloud.refuses(cloud.aws.sagemaker, "DeleteEndpoint", "AccessDeniedException", "Not you")
    with pytest.raises(XLNetFastError) as caught:
        put(cloud, folder)
    told = str(caught.value)
    assert "could not be taken back: the endpoint reviews (deleting" in told
    assert "in use by the endpoint reviews" in told
    assert "xlnet-fast deploy delete reviews" in told
    for kind in ("model", "config", "endpoint"):
        assert len(cloud.names(kind)) == 1
    assert len(cloud.objects()) == 1


def test_what_was_there_before_is_not_taken_back(cloud, folder, monkeypatch):
    """The archive of an earlier deployment of the same files."""
    put(cloud, folder)
    monkeypatch.setattr(Names, "now", lambda name: Names(name, f"{name}-2", f"{name}-2"))
    client = cloud.sagemaker
    client.delete_endpoint(EndpointName="reviews")
    before = (cloud.names("model"), cloud.names("config"), cloud.objects())
    cloud.refuses(cloud.aws.sagemaker, "CreateEndpoint", "ValidationException", "No such image")
    with pytest.raises(XLNetFastError, match="check --image"):
        put(cloud, folder)
    assert (cloud.names("model"), cloud.names("config"), cloud.objects()) == before
    assert len(cloud.asked_for("PutObject")) == 1


def test_control_c_while_waiting_leaves_the_endpoint(cloud, folder, capsys):
    seen = []

    def change(parsed):
        if "EndpointStatus" in parsed:
            parsed["EndpointStatus"] = "Creating"
            seen.append(parsed)
            if len(seen) > 2:
                raise KeyboardInterrupt

    cloud.describes(change)
    with pytest.raises(KeyboardInterrupt):
        put(cloud, folder)
    assert cloud.names("endpoint") == ["reviews"]
    told = capsys.readouterr().err
    assert "costs money from now on" in told
    assert "xlnet-fast deploy delete reviews" in told


def test_control_c_before_the_endpoint_takes_all_back(cloud, folder, capsys):
    def interrupt():
        raise KeyboardInterrupt

    cloud.answers(cloud.aws.sagemaker, "CreateEndpointConfig", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(cloud, folder)
    assert cloud.is_empty()
    assert "nothing is left" in capsys.readouterr().err


def test_a_wait_that_is_too_long_leaves_the_endpoint(cloud, folder):
    cloud.describes(
        lambda parsed: parsed.update(EndpointStatus="Creating") if "EndpointStatus" in parsed else 0
    )
    with pytest.raises(XLNetFastError, match=r"still Creating after .* minutes; AWS goes on with"):
        put(cloud, folder, wait_minutes=0.0005)
    assert cloud.names("endpoint") == ["reviews"]


def test_an_upload_that_is_cut_off_leaves_nothing(cloud, folder):
    cloud.refuses(cloud.aws.s3, "PutObject", "AccessDenied", "Access Denied")
    with pytest.raises(XLNetFastError, match=r"sending model.tar.gz to s3://.*docs/deploy.md"):
        put(cloud, folder)
    assert cloud.is_empty()


def test_a_large_archive_goes_in_parts_each_with_its_sum(cloud, folder, monkeypatch):
    (folder / "vocab.json").write_bytes(hashlib.shake_256(b"noise").digest(17 << 20))
    put(cloud, folder)
    parts = cloud.asked_for("UploadPart")
    assert len(parts) >= 2
    assert all(part["ChecksumAlgorithm"] == "SHA256" for part in parts)
    (key,) = cloud.objects()
    content = cloud.s3.get_object(Bucket=deployable.BUCKET, Key=key)
    assert hashlib.sha256(content["Body"].read()).hexdigest() == content["Metadata"]["sha256"]


# --- refused before anything is made -----------------------------------------------------------


def test_an_endpoint_of_others_stays(cloud, folder):
    put(cloud, folder)
    client = cloud.sagemaker
    arn = client.describe_endpoint(EndpointName="reviews")["EndpointArn"]
    client.delete_tags(ResourceArn=arn, TagKeys=["xlnet-fast:deployment"])
    with pytest.raises(ArgumentError, match="that xlnet-fast did not make"):
        put(cloud, folder)
    assert len(cloud.names("model")) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"role": "arn:aws:iam::999999999999:role/x"}, "of the same account alone"),
        ({"image": "1" * 12 + ".dkr.ecr.us-east-1.amazonaws.com/x:1"}, "lies in us-east-1"),
        ({"s3": "s3://not-there/x"}, "make the bucket|check the names of the bucket"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(cloud, folder, changes, told):
    with pytest.raises(XLNetFastError, match=told):
        put(cloud, folder, **changes)
    assert cloud.is_empty()
    made = [name for name, _ in cloud.calls if name.startswith(("Create", "Put"))]
    assert made == []


def test_a_bucket_of_another_region_is_refused(cloud, folder):
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="far-away")
    with pytest.raises(ArgumentError, match="far-away lies in us-east-1"):
        put(cloud, folder, s3="s3://far-away/x")
    assert cloud.is_empty()


def test_a_dry_run_asks_nobody(cloud, folder, capsys):
    def nobody(*_):
        pytest.fail("asked")

    assert deploy(deployable.deployment(folder, dry_run=True), nobody) is None
    assert "Nothing was done" in capsys.readouterr().err
