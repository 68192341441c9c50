"""What a deployment and a job may be told, and the plans that are made of it; nobody is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import deployable
import pytest
from deployable import BUCKET, IMAGE, REGION, ROLE, deployment, job, serverless

from xlnet_fast._version import __version__
from xlnet_fast.deploy.endpoint import deploy, plan_of
from xlnet_fast.deploy.endpoint_plan import EndpointPlan, Names, printed
from xlnet_fast.deploy.invocation import question_for
from xlnet_fast.deploy.training_job import JobPlan, train
from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.predictor import TASKS

NAMES = Names("reviews", "reviews-1", "reviews-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return deployable.model(tmp_path_factory.mktemp("deployed") / "model")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "my_reviews"}, "name is 'my_reviews', expected letters, digits"),
        ({"name": "-a"}, "name is"),
        ({"name": "ä"}, "name is"),
        ({"name": "a" * 48}, "47 characters at most"),
        ({"name": ""}, "name is ''"),
        ({"role": "sagemaker"}, "expected an ARN"),
        ({"image": "docker.io/xlnet-fast:1"}, "expected one of ECR"),
        ({"image": IMAGE, "region": "us-east-1"}, f"the image lies in {REGION}"),
        ({"s3": "bucket/prefix"}, "expected s3://BUCKET/PREFIX"),
        ({"s3": "s3://B/prefix"}, "expected s3://"),
        ({"instance": None}, "expected --instance TYPE or --serverless"),
        ({"instance": "c7i.xlarge"}, "expected a type such as"),
        ({"instances": 0}, "instances is 0"),
        ({"memory_mb": 2048}, "expected --serverless too"),
        ({"async_output": "here"}, "async_output is 'here'"),
        ({"autoscale": "1"}, "expected MIN:MAX"),
        ({"autoscale": "-1:2"}, "expected MIN:MAX"),
        ({"autoscale": "3:2"}, "MIN up to MAX"),
        ({"autoscale": "0:0"}, "MAX from 1"),
        ({"autoscale": "0:2"}, "from 0 is of asynchronous"),
        ({"autoscale": "2:4"}, "instances is 1, expected one within autoscale 2:4"),
        ({"target": 5.0}, "expected --autoscale"),
        ({"autoscale": "1:2", "target": 0.0}, "target is 0.0"),
        ({"autoscale": "1:2", "target": float("nan")}, "target is nan"),
        ({"env": ("1A=2",)}, "env is '1A=2'"),
        ({"subnet": ("subnet-1",)}, "both --subnet and --security-group"),
        ({"wait_minutes": 0.0}, "wait_minutes is 0.0"),
        ({"wait_minutes": float("inf")}, "wait_minutes is inf"),
        ({"check_input": Path("/not/there")}, "is no file"),
    ],
)
def test_what_a_deployment_refuses(changes, told):
    with pytest.raises(ArgumentError) as caught:
        deployment("m", **changes).check()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"memory_mb": 1000}, "expected one of 1024, 2048"),
        ({"max_concurrency": 201}, "expected 1 to 200"),
        ({"instance": "ml.c5.xlarge"}, "instance is of endpoints with instances"),
        ({"autoscale": "1:2"}, "autoscale is of endpoints with instances"),
        ({"async_output": "s3://bucket/x"}, "async_output is of endpoints with instances"),
        ({"isolate": True}, "isolate is of endpoints with instances"),
    ],
)
def test_what_a_serverless_deployment_refuses(changes, told):
    with pytest.raises(ArgumentError, match=told):
        serverless("m", **changes).check()


def test_a_name_in_china_and_one_by_its_digest_are_images():
    digest = f"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/x@sha256:{'0' * 64}"
    role = "arn:aws-cn:iam::123456789012:role/service-role/x"
    deployment("m", image=digest, role=role).check()


def test_the_plan_names_what_costs_money(folder):
    text = printed(plan_of(deployment(folder, autoscale="1:4")).steps(), "Plan:")
    lines = text.splitlines()
    costs = [lines[i - 1].split(". ")[1][:14] for i, line in enumerate(lines) if "COSTS" in line]
    assert costs == ["send the archi", "create the rea", "ask it once, w", "let it scale f"]
    assert lines[-1] == "4 of 7 steps cost money; the rest are free."
    assert "up to 4 x ml.c5.xlarge" in text


def test_a_serverless_plan_has_no_cost_while_nobody_asks(folder):
    text = printed(plan_of(serverless(folder)).steps(), "Plan:")
    assert "nothing while there are none" in text
    assert "ml." not in text.replace("amazonaws", "")


def test_the_same_files_go_to_the_same_place(folder):
    first, second = plan_of(deployment(folder)), plan_of(deployment(folder, instances=2))
    assert first.archive == second.archive
    assert str(first.archive).startswith(f"s3://{BUCKET}/deployments/reviews/")


def test_a_bucket_without_a_prefix(folder):
    place = str(plan_of(deployment(folder, s3=f"s3://{BUCKET}")).archive)
    assert place.startswith(f"s3://{BUCKET}/reviews/")


def test_requests_carry_tags_environment_and_network(folder):
    options = deployment(
        folder, env=("A=1=2", "B="), subnet=("subnet-1",), security_group=("sg-1",), isolate=True
    )
    request = EndpointPlan(options, NAMES, plan_of(options).model).model_request()
    assert request["PrimaryContainer"]["Environment"] == {"A": "1=2", "B": ""}
    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert request["EnableNetworkIsolation"] is True
    assert {"Key": "xlnet-fast:version", "Value": __version__} in request["Tags"]


def test_asynchronous_endpoints_scale_by_their_queue(folder):
    options = deployment(folder, async_output=f"s3://{BUCKET}/a", autoscale="0:3")
    options.check()
    plan = EndpointPlan(options, NAMES, None)
    tracking = plan.policy_request()["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["TargetValue"] == 5.0
    metric = tracking["CustomizedMetricSpecification"]
    assert metric["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert metric["Dimensions"] == [{"Name": "EndpointName", "Value": "reviews"}]
    assert plan.target_request()["MinCapacity"] == 0


def test_names_of_versions_fit(folder):
    names = Names.now("a" * 47)
    assert len(names.model) <= 63
    assert names.endpoint == "a" * 47


def test_a_model_in_s3_must_be_an_archive():
    with pytest.raises(ArgumentError, match=r"expected a folder or a \.tar\.gz"):
        plan_of(deployment("s3://bucket/model/"))
    assert plan_of(deployment("s3://bucket/x/model.tar.gz")).model is None


def test_a_dry_run_needs_neither_boto3_nor_credentials(folder):
    """In a process of its own, in which boto3 cannot be imported."""
    code = (
        "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from xlnet_fast.cli import app; app(sys.argv[1:], prog_name='xlnet-fast')"
    )
    arguments = [
        "deploy", "sagemaker", "--model", str(folder), "--name", "reviews", "--role", ROLE,
        "--image", IMAGE, "--s3", f"s3://{BUCKET}/x", "--instance", "ml.c5.xlarge",
    ]  # fmt: skip
    command = [sys.executable, "-c", code, *arguments]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, timeout=60)
    assert dry.returncode == 0, dry.stderr
    assert "COSTS: 1 x ml.c5.xlarge" in dry.stderr


def test_without_boto3_the_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArgumentError, match=r"pip install boto3$"):
        deploy(deployment(folder))


# --- training jobs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"command": "predict"}, "expected pretrain or finetune"),
        ({"channel": ("train",)}, "expected NAME=PLACE"),
        ({"channel": ("a=s3://bucket/a", "a=s3://bucket/b")}, "each name once"),
        ({"channel": ("a=/not/there",)}, "/not/there does not exist"),
        ({"channel": ("a=efs://fs-0123abcd/x",)}, "expected --subnet and --security-group"),
        ({"channel": ("a=efs://x/x",)}, "expected efs://fs-ID/FOLDER"),
        ({"hyperparameter": ("steps",)}, "expected NAME=VALUE"),
        ({"hyperparameter": ("command=pretrain",)}, "the command has a place"),
        ({"hyperparameter": ("a-b=1", "a_b=2")}, "each name once"),
        ({"hyperparameter": ("a=" + "x" * 2501,)}, "2,501 characters"),
        ({"instances": 2}, "needs the hyperparameter output"),
        ({"volume_gb": 0}, "volume_gb is 0"),
        ({"max_hours": 700.0}, "max_hours is 700"),
        ({"max_wait_hours": 30.0}, "expected --spot"),
        ({"max_wait_hours": 3.0, "spot": True}, "expected at least max_hours"),
        ({"checkpoints": "x"}, "checkpoints is 'x'"),
    ],
)
def test_what_a_job_refuses(changes, told):
    with pytest.raises(ArgumentError) as caught:
        job(**changes).check()
    assert told in str(caught.value)


def test_a_plan_of_a_job(capsys):
    def nobody(*_):
        pytest.fail("asked")

    assert train(job(dry_run=True, spot=True), nobody) is None
    told = capsys.readouterr().err
    assert "COSTS: 1 x ml.g6.xlarge as spot instance" in told
    assert "Nothing was done" in told


def test_a_job_without_data_has_no_channels():
    request = JobPlan(job(channel=(), command="pretrain"), "reviews-1").request()
    assert "InputDataConfig" not in request
    assert "CheckpointConfig" not in request
    assert json.dumps(request)


def test_there_is_a_question_for_every_task():
    for task in TASKS.values():
        for architecture in task.architectures:
            (record,) = json.loads(question_for(architecture).body)["instances"]
            assert task.required.keys() <= record.keys() <= {*task.required, *task.optional}
    with pytest.raises(ArgumentError, match="give --check-input FILE"):
        question_for("XLNetForNovelty")
