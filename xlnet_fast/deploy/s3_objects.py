"""Files in S3: sent with checksums, recognised as ours by their tags, deleted only if they are."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import AwsError, telling
from xlnet_fast.errors import ArgumentError

_DIGEST = "sha256"  # of an object's metadata
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Place:
    """A bucket, and a key or the beginning of one."""

    bucket: str
    key: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """From ``s3://BUCKET/KEY``."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key)

    def below(self, *names: str) -> Place:
        """The place of a name in this one."""
        return Place(self.bucket, "/".join([*filter(None, [self.key.rstrip("/")]), *names]))

    def __str__(self) -> str:
        """As a URI."""
        return f"s3://{self.bucket}/{self.key}"


def check_bucket(aws: Aws, bucket: str) -> None:
    """That the bucket is there, may be looked into, and lies in the region of all else.

    Raises:
        ArgumentError: it is in another region. AwsError: it is not there, or not for us.
    """
    with telling(f"looking for the bucket {bucket}"):
        region = aws.s3.head_bucket(Bucket=bucket).get("BucketRegion")
    if region is not None and region != aws.region:
        raise ArgumentError(
            f"the bucket {bucket} lies in {region} and the region is {aws.region}: SageMaker reads "
            "buckets of its own region alone"
        )


def upload(aws: Aws, file: Path, place: Place, tags: Mapping[str, str], digest: str) -> None:
    """Send a file, in parts if it is large, each with its SHA-256, which S3 compares.

    Args:
        digest: SHA-256 of the file in hex.

    Raises:
        AwsError: it could not be sent, or what arrived is something else.
    """
    doing = f"sending {file.name} to {place}"
    sent = {
        "ChecksumAlgorithm": "SHA256",
        "Metadata": {_DIGEST: digest},
        "Tagging": urlencode(tags),
    }
    with telling(doing), open(file, "rb") as content:
        aws.s3.upload_fileobj(content, place.bucket, place.key, ExtraArgs=sent)
    head = _head(aws, place, doing)
    size = os.stat(file).st_size
    if head["ContentLength"] != size or not _agrees(head, digest):
        delete(aws, place)
        raise AwsError(f"{doing} failed: what arrived differs from what was sent; try again")


def sha256_of(file: Path) -> str:
    """In hex; the file is read in blocks."""
    found = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _head(aws: Aws, place: Place, doing: str) -> dict[str, Any]:
    with telling(doing):
        return dict(aws.s3.head_object(Bucket=place.bucket, Key=place.key, ChecksumMode="ENABLED"))


def is_there(aws: Aws, place: Place, digest: str) -> bool:
    """Whether a file with that SHA-256 was sent there before."""
    try:
        head = _head(aws, place, f"looking for {place}")
        return bool(head["Metadata"].get(_DIGEST) == digest)
    except AwsError as error:
        # Without the right to list a bucket, S3 says 403 of what is not there; sending will tell.
        if error.not_found or error.code == "403":
            return False
        raise


def _agrees(head: Mapping[str, Any], digest: str) -> bool:
    """Whether S3's sum is ours; of parts it has compared each, and has no sum of the whole."""
    in_parts = "-" in head["ETag"]
    checksum = head.get("ChecksumSHA256")
    if in_parts or checksum is None:
        return True
    return bool(checksum == base64.b64encode(bytes.fromhex(digest)).decode())


def tags_of(aws: Aws, place: Place) -> dict[str, str]:
    """The tags of an object."""
    with telling(f"reading the tags of {place}"):
        found = aws.s3.get_object_tagging(Bucket=place.bucket, Key=place.key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def delete(aws: Aws, place: Place) -> None:
    """Delete an object; no error if there is none."""
    with telling(f"deleting {place}"):
        aws.s3.delete_object(Bucket=place.bucket, Key=place.key)


def read(aws: Aws, place: Place, doing: str) -> bytes:
    """An object's bytes."""
    with telling(doing):
        return bytes(aws.s3.get_object(Bucket=place.bucket, Key=place.key)["Body"].read())


def files_below(path: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder, hidden ones left out, with their names in it; or the file itself.

    Raises:
        ArgumentError: there is none, or a link leads out of the folder.
    """
    if path.is_file():
        yield path, path.name
        return
    root = Path(os.path.realpath(path))
    found = False
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_dir() or any(part.startswith(".") for part in name.parts):
            continue
        if not Path(os.path.realpath(file)).is_relative_to(root):
            raise ArgumentError(f"{file} is a link out of the folder: copy what it leads to")
        found = True
        yield file, name.as_posix()
    if not found:
        raise ArgumentError(f"{path} holds no file to send")


def below(aws: Aws, place: Place) -> list[Place]:
    """All objects whose keys begin so; none where the bucket may not be listed."""
    try:
        with telling(f"listing {place}"):
            pages = aws.s3.get_paginator("list_objects_v2").paginate(
                Bucket=place.bucket, Prefix=place.key
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    except AwsError as error:
        if error.code in ("AccessDenied", "403"):
            return []
        raise
    return [Place(place.bucket, key) for key in keys]
