"""Taking a deployment back later: all of it, and nothing of others."""

from __future__ import annotations

import deployable
import pytest

from xlnet_fast.deploy.endpoint import deploy
from xlnet_fast.deploy.removal import items_of, remove
from xlnet_fast.errors import ArgumentError, XLNetFastError


def put(cloud, folder, **changes):
    deploy(deployable.deployment(folder, **changes), cloud.make)


def test_all_that_a_deployment_made_goes(cloud, folder):
    put(cloud, folder, autoscale="1:2")
    items = items_of(cloud.aws, "reviews")
    kinds = [item.what.rsplit(" ", 1)[0] for item in items]
    assert kinds == [
        "the scaling of", "the endpoint", "the endpoint config", "the model", "the archive",
    ]  # fmt: skip
    remove(items)
    assert cloud.is_empty()
    found = cloud.aws.scaling.describe_scalable_targets(ServiceNamespace="sagemaker")
    assert found["ScalableTargets"] == []


def test_what_is_of_others_stays(cloud, folder):
    """A deployment whose name begins alike, a model without tags, an object without tags."""
    put(cloud, folder)
    put(cloud, folder, name="reviews-2")
    cloud.sagemaker.create_model(ModelName="reviews-by-hand", ExecutionRoleArn=deployable.ROLE)
    cloud.s3.put_object(
        Bucket=deployable.BUCKET, Key="deployments/reviews/notes.txt", Body=b"keep me"
    )
    remove(items_of(cloud.aws, "reviews"))
    assert cloud.names("endpoint") == ["reviews-2"]
    assert len(cloud.names("config")) == 1
    assert sorted(name.rsplit("-", 2)[0] for name in cloud.names("model")) == [
        "reviews", "reviews-2",
    ]  # fmt: skip
    assert "reviews-by-hand" in cloud.names("model")
    kept = sorted(key.split("/")[1] for key in cloud.objects())
    assert kept == ["reviews", "reviews-2"]
    assert "deployments/reviews/notes.txt" in cloud.objects()


def test_archives_of_earlier_versions_go_too_unless_kept(cloud, folder):
    put(cloud, folder)
    cloud.sagemaker.delete_endpoint(EndpointName="reviews")
    (folder / "vocab.json").write_text("{}")
    put(cloud, folder)
    assert len(cloud.objects()) == 2
    kept = [item.what for item in items_of(cloud.aws, "reviews", keep_archives=True)]
    assert not any("archive" in what for what in kept)
    remove(items_of(cloud.aws, "reviews"))
    assert cloud.is_empty()


def test_the_archive_of_a_training_job_stays(cloud):
    key = "jobs/reviews/output/model.tar.gz"
    cloud.s3.put_object(Bucket=deployable.BUCKET, Key=key, Body=b"x")
    put(cloud, f"s3://{deployable.BUCKET}/{key}")
    remove(items_of(cloud.aws, "reviews"))
    assert cloud.objects() == [key]
    assert cloud.names("model") == []


def test_an_endpoint_of_others_is_not_deleted(cloud, folder):
    put(cloud, folder)
    arn = cloud.sagemaker.describe_endpoint(EndpointName="reviews")["EndpointArn"]
    cloud.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["xlnet-fast:deployment"])
    with pytest.raises(ArgumentError, match="was not made by xlnet-fast deploy"):
        items_of(cloud.aws, "reviews")


def test_what_stays_is_told_and_the_rest_goes(cloud, folder):
    put(cloud, folder)
    cloud.refuses(cloud.aws.sagemaker, "DeleteModel", "AccessDeniedException", "Not you")
    with pytest.raises(XLNetFastError, match=r"1 of 4 are still there: the model reviews-\S+ \("):
        remove(items_of(cloud.aws, "reviews"))
    assert cloud.names("endpoint") == cloud.names("config") == cloud.objects() == []


def test_what_is_gone_already_is_as_good(cloud, folder):
    put(cloud, folder)
    items = items_of(cloud.aws, "reviews")
    cloud.sagemaker.delete_endpoint(EndpointName="reviews")
    cloud.sagemaker.delete_model(ModelName=cloud.names("model")[0])
    remove(items)
    assert cloud.is_empty()
