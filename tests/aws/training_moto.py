"""Training jobs: what SageMaker is asked for, how they end, and what is sent for them."""

from __future__ import annotations

import deployable
import pytest
from botocore.stub import Stubber
from command_line import run

from xlnet_fast.deploy import training_job
from xlnet_fast.deploy.endpoint_plan import tags_of
from xlnet_fast.deploy.training_job import train
from xlnet_fast.errors import XLNetFastError


def test_a_job_has_command_data_checkpoints_and_limits(cloud):
    options = deployable.job(spot=True, max_hours=2, instances=1)
    model = train(options, cloud.make)
    (asked,) = cloud.asked_for("CreateTrainingJob")
    job = cloud.sagemaker.describe_training_job(TrainingJobName=asked["TrainingJobName"])
    assert model == job["ModelArtifacts"]["S3ModelArtifacts"]
    assert job["HyperParameters"] == {
        "command": "finetune", "task": "text-classification", "learning_rate": "1e-5",
    }  # fmt: skip
    assert asked["AlgorithmSpecification"]["ContainerEntrypoint"] == [
        "python", "-m", "xlnet_fast.cli.sagemaker",
    ]  # fmt: skip
    assert asked["EnableManagedSpotTraining"] is True
    limits = {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert asked["StoppingCondition"] == limits
    place = f"s3://{deployable.BUCKET}/training/reviews/checkpoints"
    assert asked["CheckpointConfig"] == {"S3Uri": place, "LocalPath": "/opt/ml/checkpoints"}
    (channel,) = job["InputDataConfig"]
    source = channel["DataSource"]["S3DataSource"]["S3Uri"]
    assert (channel["ChannelName"], source) == ("train", f"s3://{deployable.BUCKET}/data")
    tags = cloud.sagemaker.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == tags_of("reviews")


def test_data_from_here_is_sent(cloud, tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "a.csv").write_text("text,label\n")
    (data / "deep" / "ä b.csv").write_text("text,label\n")
    (data / ".hidden").write_text("no")
    train(deployable.job(channel=(f"train={data}",)), cloud.make)
    assert cloud.objects() == [
        "training/reviews/data/train/a.csv", "training/reviews/data/train/deep/ä b.csv",
    ]  # fmt: skip
    (asked,) = cloud.asked_for("CreateTrainingJob")
    source = asked["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert source == f"s3://{deployable.BUCKET}/training/reviews/data/train"


def ended(cloud, **said):
    client = cloud.aws.sagemaker
    client.meta.events.register(
        "after-call.sagemaker.DescribeTrainingJob", lambda parsed, **_: parsed.update(said)
    )


def test_a_job_that_fails_says_why(cloud):
    ended(cloud, TrainingJobStatus="Failed", FailureReason="AlgorithmError: no column label.")
    with pytest.raises(XLNetFastError, match="is Failed: AlgorithmError: no column label; its log"):
        train(deployable.job(), cloud.make)


def test_control_c_leaves_the_job_and_says_how_to_stop_it(cloud, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    cloud.aws.sagemaker.meta.events.register("after-call.*.DescribeTrainingJob", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(deployable.job(), cloud.make)
    assert "to stop it: xlnet-fast train stop reviews-" in capsys.readouterr().err


def test_nobody_waits_where_nobody_wants_to(cloud, capsys):
    assert train(deployable.job(wait=False), cloud.make) is None
    assert cloud.asked_for("DescribeTrainingJob") == []


def test_a_network_and_several_machines(cloud):
    options = deployable.job(
        instances=2, subnet=("subnet-1",), security_group=("sg-1",), isolate=True,
        channel=(f"train=s3://{deployable.BUCKET}/data", "run=fsx://fs-0123456789abcdef0/mount/run"),
        hyperparameter=("output=/opt/ml/input/data/run",),
    )  # fmt: skip
    train(options, cloud.make)
    (asked,) = cloud.asked_for("CreateTrainingJob")
    assert asked["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert asked["ResourceConfig"]["InstanceCount"] == 2
    assert asked["EnableNetworkIsolation"] is True
    shared = asked["InputDataConfig"][1]["DataSource"]["FileSystemDataSource"]
    assert shared == {
        "FileSystemId": "fs-0123456789abcdef0", "FileSystemType": "FSxLustre",
        "FileSystemAccessMode": "rw", "DirectoryPath": "/mount/run",
    }  # fmt: skip


def test_a_job_is_stopped(cloud):
    with Stubber(cloud.aws.sagemaker) as stubber:
        stubber.add_response("stop_training_job", {}, {"TrainingJobName": "reviews-1"})
        training_job.stop(cloud.aws, "reviews-1")
        stubber.assert_no_pending_responses()


def test_the_command_prints_where_the_model_is(cloud):
    given = deployable.job()
    result = run(
        "train", "sagemaker", "finetune", "--name", given.name, "--role", given.role,
        "--image", given.image, "--s3", given.s3, "--instance", given.instance,
        "--channel", given.channel[0], "--hyperparameter", given.hyperparameter[0],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("s3://")
