"""Deploying: archive, model, endpoint config, endpoint, a first answer, scaling; or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from xlnet_fast.deploy import found, s3_objects
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import AwsError, telling
from xlnet_fast.deploy.deployment import DeployOptions, check_account, check_image
from xlnet_fast.deploy.endpoint_plan import EndpointPlan, Names, printed, scaled
from xlnet_fast.deploy.invocation import Question, ask, question_for
from xlnet_fast.deploy.model_archive import model_folder, pack
from xlnet_fast.deploy.patience import say, wait_for
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.deploy.undoing import Made
from xlnet_fast.errors import ArgumentError, XLNetFastError

PASSING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


def plan_of(options: DeployOptions) -> EndpointPlan:
    """What is to be done; looks at the model's files and asks nobody.

    Raises:
        ArgumentError: an option or the model's folder cannot be used.
    """
    options.check()
    if options.model.startswith("s3://"):
        if not Place.of(options.model).key.endswith(".tar.gz"):
            raise ArgumentError(f"model is {options.model}, expected a folder or a .tar.gz in S3")
        return EndpointPlan(options, Names.now(options.name), None)
    return EndpointPlan(options, Names.now(options.name), model_folder(options.model))


def deploy(options: DeployOptions, make_aws: Callable[..., Aws] = Aws) -> str | None:
    """Carry a plan out.

    A failure or Ctrl-C takes back what this call has made, the last first; while an endpoint is
    waited for, Ctrl-C and the end of ``wait_minutes`` leave it, for AWS goes on by itself.

    Returns:
        What the endpoint answered, None where it was not asked.

    Raises:
        ArgumentError: an option cannot be used. XLNetFastError: it failed; says what is left.
    """
    plan = plan_of(options)
    say(printed(plan.steps(), f"Deployment {options.name}, {options.kind}:"))
    if options.dry_run:
        say("Nothing was done: --dry-run.")
        return None
    aws = make_aws(options.region, options.profile)
    return _Deployment(plan, aws).run()


class _Deployment:
    """The steps, each of which is remembered as it is done."""

    def __init__(self, plan: EndpointPlan, aws: Aws) -> None:
        self.plan, self.aws, self.made = plan, aws, Made()
        self.options, self.names = plan.options, plan.names
        self.left_to_itself = False  # the endpoint, which AWS goes on with

    def run(self) -> str | None:
        before = self._look()
        try:
            self._archive()
            self._model()
            self._config()
            self._endpoint(before)
            answer = self._first_answer()
            self._scaling()
        except BaseException as error:
            if self.left_to_itself:
                self._goes_on(error)
            left = self._take_back()
            if not isinstance(error, Exception):
                say("\n".join(f"still there: {one}" for one in left) or "nothing is left")
                raise
            raise XLNetFastError(f"{error}{_remains(left, self.options.name)}") from error
        if before is not None:
            self._retire(str(before["EndpointConfigName"]))
        say(f"{self.names.endpoint} is in service; to delete it: {self._deletion()}")
        return answer

    def _take_back(self) -> list[str]:
        try:
            return self.made.take_back(say)
        except KeyboardInterrupt:
            say(f"cut short: some of it may still be there; try {self._deletion()}")
            raise

    def _deletion(self) -> str:
        return f"xlnet-fast deploy delete {self.options.name}"

    def _look(self) -> dict[str, Any] | None:
        """The endpoint that is there; raises where nothing can be deployed."""
        check_account(self.options.role, self.aws.account())
        check_image(self.options.image, self.aws.region)
        s3_objects.check_bucket(self.aws, self.plan.archive.bucket)
        name = self.names.endpoint
        there = found.endpoint(self.aws, name)
        if there is None:
            return None
        if found.deployment_of(self.aws, there["EndpointArn"]) != name:
            raise ArgumentError(
                f"there is an endpoint {name} that xlnet-fast did not make: choose another --name"
            )
        state = there["EndpointStatus"]
        if state != "InService":
            raise ArgumentError(
                f"the endpoint {name} is {state}, and only one in service can be updated: wait, or "
                f"delete it by {self._deletion()}"
            )
        return there

    def _archive(self) -> None:
        if self.plan.model is None:
            return
        place = self.plan.archive
        with tempfile.TemporaryDirectory(prefix="xlnet-fast-") as folder:
            file = Path(folder) / "model.tar.gz"
            say(f"packing {self.plan.model.folder}")
            digest = pack(self.plan.model, file)
            if s3_objects.is_there(self.aws, place, digest):
                say("the archive is in S3 already")
                return
            say(f"sending {file.stat().st_size / 2**20:,.1f} MiB")
            send = partial(s3_objects.upload, self.aws, file, place, self.plan.tags, digest)
            self._make(f"the archive {place}", send, partial(s3_objects.delete, self.aws, place))

    def _model(self) -> None:
        name, client = self.names.model, self.aws.sagemaker
        self._make(
            f"the model {name}",
            partial(client.create_model, **self.plan.model_request()),
            partial(delete_model, self.aws, name),
        )

    def _config(self) -> None:
        name, client = self.names.config, self.aws.sagemaker
        self._make(
            f"the endpoint config {name}",
            partial(client.create_endpoint_config, **self.plan.config_request()),
            partial(delete_config, self.aws, name),
        )

    def _endpoint(self, before: dict[str, Any] | None) -> None:
        """Create or update it, and wait."""
        name, client = self.names.endpoint, self.aws.sagemaker
        if before is None:
            what, do = "", partial(client.create_endpoint, **self.plan.create_request())
            minutes = self.options.wait_minutes
            undo: Callable[[], None] = partial(delete_endpoint, self.aws, name, minutes)
        else:
            running = sum(one.get("CurrentInstanceCount", 0) for one in variants_of(before))
            scales = found.scaling(self.aws, name) is not None
            what = "the update of "
            do = partial(client.update_endpoint, **self.plan.update_request(running, scales))
            undo = partial(self._back_to, str(before["EndpointConfigName"]))
        self._make(f"{what}the endpoint {name}", do, undo, holds=True)
        self.left_to_itself = True
        self._wait()
        self.left_to_itself = False

    def _make(
        self, what: str, do: Callable[[], object], undo: Callable[[], None], holds: bool = False
    ) -> None:
        def told() -> None:
            with telling(f"making {what}"):
                do()

        self.made.make(what, told, undo, holds=holds)
        say(f"made {what}")

    def _wait(self) -> None:
        """Until the endpoint is in service with our config."""
        name = self.names.endpoint
        state = self._state(name)
        there = found.endpoint(self.aws, name) or {}
        if state == "InService" and there.get("EndpointConfigName") == self.names.config:
            return
        self.left_to_itself = False
        why = there.get("FailureReason") or "SageMaker names no reason"
        rolled = " and SageMaker went back to what was there before" if state == "InService" else ""
        raise XLNetFastError(
            f"the endpoint {name} did not come into service{rolled}: {why.rstrip('.')}; the "
            f"container's log is in CloudWatch, /aws/sagemaker/Endpoints/{name}"
        )

    def _state(self, name: str) -> str:
        return wait_for(
            f"the endpoint {name}",
            lambda: found.status(self.aws, name),
            PASSING.__contains__,
            minutes=self.options.wait_minutes,
        )

    def _back_to(self, config: str) -> None:
        """Update to the config of before, unless SageMaker has done so."""
        name = self.names.endpoint
        there = found.endpoint(self.aws, name)
        if there is None or there["EndpointConfigName"] == config:
            return
        with telling(f"updating the endpoint {name} back to {config}"):
            self.aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
        state = self._state(name)
        if state != "InService":
            raise XLNetFastError(f"the endpoint {name} is {state} after the way back to {config}")

    def _first_answer(self) -> str | None:
        """Ask the endpoint once: it may be in service and still unable to answer."""
        question = self._question()
        if question is None:
            return None
        answer = ask(self.aws, self.names.endpoint, question, self.options.async_output)
        text = answer.decode("utf-8", "replace").strip()
        say(f"asked once, it answered {text[:200]}{'...' if len(text) > 200 else ''}")
        return text

    def _question(self) -> Question | None:
        if not self.options.check_answer:
            return None
        if self.options.check_input is not None:
            return Question.of(self.options.check_input)
        if self.plan.model is None:
            say("not asked, because the model's task is not known: give --check-input FILE")
            return None
        return question_for(self.plan.model.architecture)

    def _scaling(self) -> None:
        if self.options.bounds is None:
            return
        name = self.names.endpoint
        before = found.scaling(self.aws, name)
        with telling(f"registering {name} for scaling"):
            self.aws.scaling.register_scalable_target(**self.plan.target_request())
        if before is None:
            undo: Callable[[], None] = partial(delete_scaling, self.aws, name)
        else:
            undo = partial(self._bounds_back, before)
        self.made.add(f"the scaling of {name}", undo)
        with telling(f"setting how {name} scales"):
            self.aws.scaling.put_scaling_policy(**self.plan.policy_request())

    def _bounds_back(self, before: dict[str, Any]) -> None:
        limits = {key: before[key] for key in ("MinCapacity", "MaxCapacity")}
        with telling(f"setting the bounds of {self.names.endpoint} back"):
            self.aws.scaling.register_scalable_target(**scaled(self.names.endpoint), **limits)

    def _retire(self, config: str) -> None:
        """Delete the config and the models that the endpoint had; the archive stays in S3."""
        name = self.options.name
        models = set(found.models_of(self.aws, config)) - {self.names.model}
        for model in models & set(found.ours(self.aws, "model", name)):
            _or_say(partial(delete_model, self.aws, model))
        if config in found.ours(self.aws, "endpoint config", name):
            _or_say(partial(delete_config, self.aws, config))

    def _goes_on(self, error: BaseException) -> NoReturn:
        """Leave what AWS goes on with, and say how to go on with it."""
        advice = (
            f"AWS goes on with {self.names.endpoint}, which costs money from now on; it was "
            "neither asked nor set to scale: to see its state, xlnet-fast deploy list; to go on, "
            f"the same command once it is in service; to delete it, {self._deletion()}"
        )
        if isinstance(error, Exception):
            raise XLNetFastError(f"{error}; {advice}") from error
        say(advice)
        raise error


def variants_of(endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """What an endpoint runs."""
    return list(endpoint.get("ProductionVariants") or [])


def _remains(left: list[str], name: str) -> str:
    if not left:
        return "; what had been made was taken back"
    return (
        f"; could not be taken back: {'; '.join(left)}; try xlnet-fast deploy delete {name}, for "
        "an endpoint costs money as long as it is there"
    )


def _or_say(delete: Callable[[], None]) -> None:
    """Something without cost that stays is no failure."""
    try:
        delete()
    except AwsError as error:
        if not error.not_found:
            say(f"warning: {error}")


def delete_model(aws: Aws, name: str) -> None:
    """Delete a model."""
    with telling(f"deleting the model {name}"):
        aws.sagemaker.delete_model(ModelName=name)


def delete_config(aws: Aws, name: str) -> None:
    """Delete an endpoint config."""
    with telling(f"deleting the endpoint config {name}"):
        aws.sagemaker.delete_endpoint_config(EndpointConfigName=name)


def delete_scaling(aws: Aws, name: str) -> None:
    """Let the number of an endpoint's instances be; its policies go too."""
    with telling(f"deleting the scaling of {name}"):
        aws.scaling.deregister_scalable_target(**scaled(name))


def delete_endpoint(aws: Aws, name: str, minutes: float = 60.0) -> None:
    """Delete an endpoint and wait until it is gone."""
    with telling(f"deleting the endpoint {name}"):
        aws.sagemaker.delete_endpoint(EndpointName=name)
    state = wait_for(
        f"the endpoint {name}",
        lambda: found.status(aws, name),
        "Deleting".__eq__,
        minutes=minutes,
    )
    if state != "Gone":
        raise XLNetFastError(f"the endpoint {name} is {state} and not deleted")
