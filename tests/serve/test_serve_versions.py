"""Versions in folders: what is found, whether it is whole, hot loads, checks, what is let go."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import time
import weakref

import pytest
from safetensors.torch import load_file, save_file
from served import TEXTS, classifier, options, run, until

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve import canary, loading, room, versions
from xlnet_fast.serve.contract import Conflict, NoRoom, UnknownModel
from xlnet_fast.serve.versions import find, incomplete

PREDICT = "/v1/models/reviews:predict"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two classifiers with the same tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    first = classifier(folder / "first")
    return first, classifier(folder / "second", seed=1, source=first)


@pytest.fixture
def models(tmp_path, made, monkeypatch):
    """A folder with version 1 of reviews."""
    monkeypatch.setattr(versions, "SETTLED_S", 0.0)
    shutil.copytree(made[0], tmp_path / "models" / "reviews" / "1")
    return tmp_path / "models"


def states(service):
    return {f"{one.name}/{one.version}": one.state for one in service.models()}


async def rescanned(service):
    await service.manager._watcher.scan()


async def version_of(client, path=PREDICT):
    response = await client.post(path, json={"record": TEXTS[0]})
    return response.json()["version"] if response.status_code == 200 else response.status_code


def broken(source, folder):
    """A version whose values are no numbers."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights["logits_proj.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_what_is_found(tmp_path, made):
    for name in ("a/1", "a/10", "a/9", "a/x", "a/.2", ".hidden", "b", "empty", "bad name"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(made[0], tmp_path / "b", dirs_exist_ok=True)
    shutil.copytree(made[0], tmp_path / "run" / "model")
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = find(tmp_path)
    assert {name: [one.version for one in ones] for name, ones in found.items()} == {
        "a": ["10", "9", "1"], "b": ["1"], "run": ["1"],
    }  # fmt: skip
    assert found["run"][0].folder == tmp_path / "run" / "model"
    assert "no config.json" in found["a"][0].unfinished
    assert "has just changed" in found["b"][0].unfinished
    later = find(tmp_path, time.time() + 40)
    assert "incomplete: there is no config.json" in later["a"][0].damaged
    assert (later["b"][0].unfinished, later["b"][0].damaged) == ("", "")
    assert later["b"][0].fingerprint == found["b"][0].fingerprint
    os.utime(tmp_path / "b" / "config.json", (1, 1))
    assert find(tmp_path)["b"][0].fingerprint != found["b"][0].fingerprint


def test_what_a_folder_lacks(tmp_path, made):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    assert incomplete(tmp_path) == ""
    for length in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert "bytes" in incomplete(tmp_path), length
    weights.unlink()
    assert incomplete(tmp_path) == "there are no weights"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "model-1.safetensors").write_bytes(whole)
    assert incomplete(tmp_path) == "there is no model-2.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in incomplete(tmp_path)


def test_a_hot_load_under_load_fails_no_request(models, made):
    """Twelve clients ask without a pause while three versions come."""

    async def work(service, client):
        seen, stop = [], asyncio.Event()
        held = weakref.ref(service.predictor("reviews").task.model)

        async def ask(n):
            while not stop.is_set():
                response = await client.post(PREDICT, json={"record": TEXTS[n % 3]})
                seen.append((response.status_code, response.json().get("version")))

        clients = [asyncio.ensure_future(ask(n)) for n in range(12)]
        for version in ("2", "3", "4"):
            shutil.copytree(made[int(version) % 2], models / "reviews" / version)
            await rescanned(service)
            answered = len(seen)
            await until(lambda answered=answered: len(seen) > answered + 12)
        stop.set()
        await asyncio.gather(*clients)
        await until(lambda: states(service) == {"reviews/4": "ready"})
        gc.collect()
        assert held() is None
        return seen

    seen = run(options(models), work)
    assert {status for status, _ in seen} == {200}
    order = [version for _, version in seen]
    assert set(order) == {"1", "2", "3", "4"}
    assert order[-1] == "4"


def test_requests_in_flight_end_on_the_old_version(models, made):
    async def work(service, client):
        import threading

        closed = threading.Event()
        old = service.manager.lookup("reviews")
        compute = old.worker._run
        old.worker._run = lambda *batch: closed.wait(20) and compute(*batch)
        first = asyncio.ensure_future(version_of(client))
        await until(lambda: old.worker._pieces)
        shutil.copytree(made[1], models / "reviews" / "2")
        await rescanned(service)
        assert await version_of(client) == "2"
        assert states(service) == {"reviews/1": "unloading", "reviews/2": "ready"}
        assert await version_of(client, "/v1/models/reviews/versions/1:predict") == 404
        closed.set()
        assert await first == "1"
        await until(lambda: states(service) == {"reviews/2": "ready"})

    run(options(models), work)


def test_versions_that_are_kept(models, made):
    for version in ("2", "3"):
        shutil.copytree(made[1], models / "reviews" / version)

    async def work(service, client):
        assert states(service) == {"reviews/2": "ready", "reviews/3": "ready"}
        assert await version_of(client) == "3"
        assert await version_of(client, "/v1/models/reviews/versions/2:predict") == "2"
        assert await version_of(client, "/v1/models/reviews/versions/1:predict") == 404
        shutil.rmtree(models / "reviews" / "3")
        await rescanned(service)
        assert await version_of(client) == "2"
        await until(lambda: set(states(service)) == {"reviews/1", "reviews/2"})
        shutil.copytree(made[0], models / "other")
        await rescanned(service)
        assert await version_of(client, "/v1/models/other:predict") == "1"
        shutil.rmtree(models / "reviews")
        await rescanned(service)
        await until(lambda: states(service) == {"other/1": "ready"})
        assert await version_of(client) == 404
        os.rename(models, models.with_name("away"))
        await rescanned(service)
        assert await version_of(client, "/v1/models/other:predict") == "1"

    run(options(models, keep=2), work)


def test_a_version_that_fails_its_checks_changes_nothing(models, made):
    async def work(service, client):
        second = broken(made[1], models / "reviews" / "2")
        await rescanned(service)
        assert states(service) == {"reviews/1": "ready", "reviews/2": "failed"}
        assert await version_of(client) == "1"
        assert service.ready
        told = (await client.get("/v1/models/reviews")).json()["versions"][1]
        assert "no numbers" in told["reason"]
        page = service.metrics.page().decode()
        assert 'model_loads_total{model="reviews",result="failed"} 1.0' in page
        assert 'model_state{model="reviews",state="failed",version="2"} 1.0' in page
        await rescanned(service)  # as it lies there it is not tried again
        assert 'result="failed"} 1.0' in service.metrics.page().decode()
        shutil.copy2(made[1] / "model.safetensors", second)
        await rescanned(service)
        assert await version_of(client) == "2"

    run(options(models), work)


def test_a_half_written_version_is_waited_for(models, made):
    whole = (made[1] / "model.safetensors").read_bytes()

    async def work(service, client):
        second = models / "reviews" / "2"
        second.mkdir()
        for name in ("config.json", "spiece.model"):
            shutil.copy(made[1] / name, second)
        (second / "model.safetensors").write_bytes(whole[:-5000])
        await rescanned(service)
        assert states(service) == {"reviews/1": "ready", "reviews/2": "loading"}
        assert "bytes" in service.models()[1].reason
        with open(second / "model.safetensors", "ab") as file:
            file.write(whole[-5000:])
        await rescanned(service)
        assert await version_of(client) == "2"

    run(options(models), work)


def test_a_folder_without_a_version_may_be_replaced(tmp_path, made, monkeypatch):
    monkeypatch.setattr(versions, "SETTLED_S", 0.0)
    folder = tmp_path / "reviews"
    shutil.copytree(made[0], folder)

    async def work(service, client):
        before = (await client.post(PREDICT, json={"record": TEXTS[1]})).json()
        shutil.copy2(made[1] / "model.safetensors", folder)
        await rescanned(service)
        after = (await client.post(PREDICT, json={"record": TEXTS[1]})).json()
        assert before["version"] == after["version"] == "1"
        assert before["answers"] != after["answers"]
        (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
        await rescanned(service)
        assert (await client.post(PREDICT, json={"record": TEXTS[1]})).json() == after
        assert "cannot be loaded" in service.models()[0].reason

    run(options(tmp_path), work)


def test_canaries_of_a_folder(models, made):
    """The right answers of version 1 are the wrong ones of another model."""

    async def work(service, client):
        answer = (await client.post(PREDICT, json={"record": TEXTS[1]})).json()["answers"][0]
        line = json.dumps({"record": TEXTS[1], "expected": answer}) + "\n"
        for version, source in (("2", made[1]), ("3", made[0])):
            folder = models / "reviews" / version
            shutil.copytree(source, folder)
            (folder / canary.FILE).write_text(line, encoding="utf-8")
            await rescanned(service)
        assert states(service)["reviews/2"] == "failed"
        reason = next(one.reason for one in service.models() if one.version == "2")
        assert "canary 1 is answered otherwise than expected: " in reason
        assert await version_of(client) == "3"

    run(options(models), work)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1 of canary.jsonl is no JSON"),
        ('{"record": "a"}\n[]', "line 2 of canary.jsonl must be an object of record"),
        ('{"record": "a", "text": 1}', "must be an object of record"),
        ("\n", "has 0 records, expected 1 to 64"),
    ],
)
def test_canaries_that_cannot_be_read(tmp_path, text, words):
    (tmp_path / canary.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError, match=words):
        canary.read(tmp_path / canary.FILE)


@pytest.mark.parametrize(
    ("expected", "found", "wrong"),
    [
        ({"a": 1.0005}, {"a": 1, "b": 2}, ""),
        ({"a": 1.002}, {"a": 1}, "a is 1, not 1.002"),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "y"}]}, "a[1].b is 'y', not 'x'"),
        ({"a": True}, {"a": 1}, "a is 1, not True"),
        ({"a": True, "b": None}, {"a": True, "b": None}, ""),
        ({"c": 1}, {"a": 1}, "there is no c"),
        ([1], [1, 2], " is [1, 2], not [1]"),
    ],
)
def test_differences(expected, found, wrong):
    assert canary.difference(expected, found, 1e-3) == wrong


def test_a_failed_model_gives_way_to_an_older_version(models, made):
    shutil.copytree(made[1], models / "reviews" / "2")

    async def work(service, client):
        newest = service.manager.lookup("reviews")
        assert newest.version == "2"
        newest.predictor.task.model.logits_proj.weight.fill_(float("nan"))
        for _ in range(3):
            await version_of(client)
        await until(lambda: newest.state == "failed")
        assert not service.ready
        await rescanned(service)
        assert service.ready
        assert await version_of(client) == "1"
        await until(lambda: newest.worker is None)
        assert states(service) == {"reviews/1": "ready", "reviews/2": "failed"}
        service.manager.rescan()
        await until(lambda: states(service) == {"reviews/2": "ready"})

    run(options(models), work)


def test_models_by_request(models, made, tmp_path):
    other = tmp_path / "sent" / "other"
    shutil.copytree(made[1], other)
    chosen = options(models, load_from=tmp_path / "sent")

    async def work(service, client):
        with pytest.raises(ArgumentError, match="not one below"):
            await service.load("other", str(models / "reviews" / "1"))
        with pytest.raises(ArgumentError, match="not one below"):
            await service.load("other", str(other / ".." / ".." / "models" / "reviews" / "1"))
        with pytest.raises(ArgumentError, match="not one below"):
            await service.load("other", "\0")
        with pytest.raises(ArgumentError, match="the model's name must be"):
            await service.load("../other", str(other))
        loads = [service.load("other", str(other)) for _ in range(2)]
        _, conflict = await asyncio.gather(*loads, return_exceptions=True)
        assert isinstance(conflict, Conflict)
        assert await version_of(client, "/v1/models/other:predict") == "1"
        with pytest.raises(Conflict):
            await service.load("reviews", str(other))
        await rescanned(service)  # it is not of the folder that is looked at, and stays
        assert await version_of(client, "/v1/models/other:predict") == "1"
        await service.unload("other")
        with pytest.raises(UnknownModel):
            await service.unload("other")
        (other / "config.json").unlink()
        with pytest.raises(ArgumentError, match=r"holds no config\.json"):
            await service.load("other", str(other))
        assert "other/1" not in states(service)
        await service.unload("reviews")
        await rescanned(service)
        assert await version_of(client) == 404
        service.manager.rescan()
        await until(lambda: "reviews/1" in states(service) and service.ready)

    run(chosen, work)
    with pytest.raises(ArgumentError, match="--load-from"):
        run(options(models), lambda service, client: service.load("other", str(other)))


def test_room(models, made, tmp_path, monkeypatch):
    assert room.available_bytes() > 1 << 20
    size = (made[0] / "model.safetensors").stat().st_size
    assert room.fp32_bytes(made[0]) == size
    monkeypatch.setattr(room, "available_bytes", lambda: size)
    with pytest.raises(NoRoom, match="unload another first"):
        loading.load(str(made[0]), options(made[0]))

    async def work(service, client):
        with pytest.raises(NoRoom):
            await service.load("other", str(made[0]))
        assert states(service) == {"reviews/1": "failed"}
        assert not service.ready

    run(options(models, load_from=made[0].parent), work)


def test_what_may_not_be_loaded(made, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(made[0], folder)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArgumentError, match="is an adapter"):
        loading.load(str(folder), options(folder))
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArgumentError, match="loaded with --allow-pickle alone"):
        loading.load(str(folder), options(folder))
    with pytest.raises(ArgumentError, match=r"weights of .* cannot be read"):
        loading.load(str(folder), options(folder, allow_pickle=True))
    with pytest.raises(ArgumentError, match="does not exist"):
        loading.load("/no/such/folder", options(folder))
    with pytest.raises(ArgumentError, match="HF_HUB_OFFLINE forbids"):
        loading.load("somebody/something", options(folder))


def test_another_task_is_no_version(models, made, tmp_path):
    async def work(service, client):
        second = models / "reviews" / "2"
        shutil.copytree(made[1], second)
        config = json.loads((second / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = ["XLNetForTokenClassification"]
        (second / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = load_file(second / "model.safetensors")
        renamed = {
            name.replace("logits_proj", "classifier"): value
            for name, value in weights.items()
            if "summary" not in name
        }
        save_file(renamed, second / "model.safetensors", {"format": "pt"})
        await rescanned(service)
        reason = next(one.reason for one in service.models() if one.version == "2")
        assert "token-classification" in reason
        assert await version_of(client) == "1"

    run(options(models), work)


def test_the_start_waits_for_what_was_just_written(models, monkeypatch):
    monkeypatch.setattr(versions, "SETTLED_S", 1.0)
    os.utime(models / "reviews" / "1" / "config.json")

    async def work(service, client):
        assert states(service) == {"reviews/1": "ready"}

    run(options(models), work)


def test_a_folder_of_versions_alone_is_one_model(models):
    async def work(service, client):
        assert states(service) == {"reviews/1": "ready"}

    run(options(models / "reviews"), work)


def test_the_folder_is_looked_at_again_and_again(models, made):
    async def work(service, client):
        shutil.copytree(made[1], models / "reviews" / "7")
        await until(lambda: states(service).get("reviews/7") == "ready")

    run(options(models, poll=0.05), work)
