"""What went wrong at AWS, as one sentence that says what to do.

Errors are told apart by the names of their classes and by their codes: botocore is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from xlnet_fast.errors import XLNetFastError

_SIGN_IN = (
    "sign in with `aws configure` or `aws sso login`, set AWS_PROFILE, or run this where a role "
    "is attached"
)
_LATER = "try again later; what was asked for may have been right"
_NETWORK = "check the network, the proxy and the region's name"
_PERMISSIONS = (
    "let an administrator allow this action to the identity that you use; docs/deploy.md has the "
    "policy"
)
_CLOCK = "check the access key, its secret and this machine's clock"

# By the name of botocore's class, or of one that it derives from.
_CLASSES = {
    "NoCredentialsError": ("there are no credentials", _SIGN_IN),
    "PartialCredentialsError": ("the credentials are incomplete", _SIGN_IN),
    "CredentialRetrievalError": ("the credentials could not be fetched", _SIGN_IN),
    "SSOError": ("the sign-in has expired or is missing", "run `aws sso login`"),
    "TokenRetrievalError": ("the sign-in has expired or is missing", "run `aws sso login`"),
    "ProfileNotFound": ("", "name a profile of ~/.aws/config, or none"),
    "NoRegionError": ("no region is set", "give --region, or set AWS_REGION or a profile's region"),
    "InvalidRegionError": ("", "give --region such as eu-central-1"),
    "ProxyConnectionError": ("the proxy cannot be reached", _NETWORK),
    "SSLError": ("the connection is not trusted", "check the proxy and AWS_CA_BUNDLE"),
    "HTTPClientError": ("AWS cannot be reached", _NETWORK),
    "ConnectionError": ("AWS cannot be reached", _NETWORK),
    "ParamValidationError": ("a value is of no form that AWS takes", "change it"),
    "IncompleteReadError": ("the connection broke off", _LATER),
    "ResponseStreamingError": ("the connection broke off", _LATER),
}
# By the error's code.
_CODES = {
    "AccessDenied": _PERMISSIONS,
    "AccessDeniedException": _PERMISSIONS,
    "UnauthorizedOperation": _PERMISSIONS,
    "403": _PERMISSIONS,
    "ExpiredToken": "sign in anew, with `aws sso login` for example",
    "ExpiredTokenException": "sign in anew, with `aws sso login` for example",
    "RequestExpired": _CLOCK,
    "InvalidClientTokenId": _CLOCK,
    "InvalidAccessKeyId": _CLOCK,
    "UnrecognizedClientException": _CLOCK,
    "SignatureDoesNotMatch": _CLOCK,
    "InvalidSignatureException": _CLOCK,
    "RequestTimeTooSkewed": "set this machine's clock",
    "ResourceLimitExceeded": (
        "ask for a higher quota under Service Quotas, SageMaker, or use another instance type or "
        "fewer instances"
    ),
    "LimitExceededException": "delete what is no longer needed, or ask for a higher quota",
    "ResourceInUse": "wait until what goes on there has ended, or choose another --name",
    "ResourceInUseException": "wait until what goes on there has ended, or choose another --name",
    "ConflictException": "wait until what goes on there has ended, or choose another --name",
    "ConcurrentUpdateException": "wait a moment and try again",
    "NoSuchBucket": "make the bucket first, in the endpoint's region, or name another one",
    "404": "check the names of the bucket and the key",
    "NoSuchKey": "check the name of the key",
    "301": "use a bucket of the endpoint's region, or give the bucket's --region",
    "PermanentRedirect": "use a bucket of the endpoint's region, or give the bucket's --region",
    "BadDigest": "what arrived differs from what was sent: try again",
    "XAmzContentChecksumMismatch": "what arrived differs from what was sent: try again",
    "ModelError": "the container's log says why: CloudWatch, /aws/sagemaker/Endpoints/NAME",
    "ModelNotReadyException": "the model is still being loaded: try again in a moment",
    "ObjectNotFoundException": "there is no such scaling, or its endpoint is gone",
    "FailedResourceAccessException": _PERMISSIONS,
    "ThrottlingException": _LATER,
    "Throttling": _LATER,
    "TooManyRequestsException": _LATER,
    "SlowDown": _LATER,
    "InternalFailure": _LATER,
    "InternalServerException": _LATER,
    "InternalServiceException": _LATER,
    "InternalDependencyException": _LATER,
    "InternalStreamFailure": _LATER,
    "ServiceUnavailable": _LATER,
}
# A ValidationException may mean anything: by words of its message, the first that fits.
_VALIDATIONS = (
    ("already exist", "choose another --name, or delete what has it"),
    (
        "role",
        "check --role: SageMaker must be allowed to assume it (a trust policy for "
        "sagemaker.amazonaws.com), and it must read the bucket and the image",
    ),
    ("image", "check --image: it must lie in ECR, in the endpoint's region, readable for --role"),
    ("instance type", "check --instance: not every region has every type"),
    ("could not find", "check the name and the region"),
    ("cannot update", "wait until what goes on there has ended"),
    ("bucket", "check the bucket's name and region, and that --role may read it"),
)


class AwsError(XLNetFastError):
    """AWS refused, or could not be asked; the message says what to do.

    Attributes:
        code: AWS' name of the error, or botocore's. message: its own words, or "".
        answered: whether AWS said so itself; else nobody knows whether it did what it was asked.
    """

    def __init__(
        self, sentence: str, code: str = "", message: str = "", *, answered: bool = False
    ) -> None:
        """A sentence, and what it was made of."""
        super().__init__(sentence)
        self.code = code
        self.message = message
        self.answered = answered

    @property
    def not_found(self) -> bool:
        """Whether what was asked for is not there."""
        gone = ("404", "NoSuchKey", "NotFound", "ResourceNotFound", "ObjectNotFoundException")
        return self.code in gone or (
            self.code == "ValidationException"
            and any(words in self.message.lower() for words in ("could not find", "not found"))
        )


@contextmanager
def telling(doing: str) -> Iterator[None]:
    """What botocore raises inside becomes an ``AwsError``; ``doing`` begins its sentence."""
    try:
        yield
    except Exception as error:
        told = told_of(error, doing)
        if told is None:
            raise
        raise told from error


def told_of(error: Exception, doing: str) -> AwsError | None:
    """The sentence on an error of botocore, None for any other."""
    names = [kind.__name__ for kind in type(error).__mro__ if _of_aws(kind)]
    response = getattr(error, "response", None)
    if isinstance(response, Mapping) and "Error" in response:
        return _of_response(response, doing)
    for name in names:
        if name in _CLASSES:
            why, what = _CLASSES[name]
            words = _words(error)
            message = why if not words or name in ("NoCredentialsError", "NoRegionError") else words
            if why and message is words:
                message = f"{why} ({words})"
            return AwsError(f"{doing} failed: {message}; {what}", name, words)
    if names:
        return AwsError(f"{doing} failed: {_words(error)}", names[0], _words(error))
    return None


def _of_aws(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("botocore", "boto3", "s3transfer")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _of_response(response: Mapping[str, Any], doing: str) -> AwsError:
    """Of an answer that is an error: its code and its words."""
    code = str(response["Error"].get("Code") or "")
    message = " ".join(str(response["Error"].get("Message") or code).split()).rstrip(".")
    what = _CODES.get(code, "")
    if code in ("ValidationException", "ValidationError"):
        code, low = "ValidationException", message.lower()
        what = next((advice for words, advice in _VALIDATIONS if words in low), "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if not what and isinstance(status, int) and status >= 500:
        what = _LATER
    named = message if code in ("", message) else f"{message} ({code})"
    sentence = f"{doing} failed: {named}{f'; {what}' if what else ''}"
    answered = not (isinstance(status, int) and status >= 500)
    return AwsError(sentence, code, message, answered=answered)
