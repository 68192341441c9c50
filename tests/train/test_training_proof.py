"""The training proof from end to end on a model that learns nothing in its two steps."""

import copy
import csv
import json

import pytest
from matplotlib.image import imread

from xlnet_fast.text import builtin_articles
from xlnet_fast.train.finetune import outputs
from xlnet_fast.train.pretraining import options, sources
from xlnet_fast.train.pretraining import run as pretraining
from xlnet_fast.train.proof import questions, tasks
from xlnet_fast.train.proof.questions import answers, draw_curves, largest_distance

PROOF = {
    "curves": {"within_noise": True},
    "pretraining": {"eval_perplexity": 40.0, "unigram_perplexity": 90.0},
    "finetuning": {
        "order": {
            "pretrained": {"test_accuracy": [0.8, 0.7]},
            "from_scratch": {"test_accuracy": [0.5, 0.6]},
        }
    },
}


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(options.SIZES, "tiny", (16, 1, 2, 16))
    for name, value in {"CLASSES": 2, "PASSAGES": 2, "SENTENCES": 8}.items():
        monkeypatch.setattr(tasks, name, value)
    for name, value in {
        "VOCABULARY": 300, "CURVE_STEPS": 3, "MOVED": (1, 2), "LEARNING_RATES": (1e-9, 1e-3),
        "FINETUNING_STEPS": {"order": 2, "article": 1},
    }.items():  # fmt: skip
        monkeypatch.setattr(questions, name, value)
    few = dict(list(builtin_articles().items())[:20])
    for module in (sources, tasks):
        monkeypatch.setattr(module, "builtin_articles", lambda: few)
    monkeypatch.setattr(outputs, "write_plots", lambda *_: None)  # of eight fine-tunings
    monkeypatch.setattr(pretraining, "plot_losses", lambda *_: None)
    out = tmp_path / "proof"
    code = questions.main(["--out", str(out), "--steps", "2", "--seeds", "1"])
    printed = capsys.readouterr().out
    assert code == 1
    assert "below half of the unigram perplexity: NO" in printed

    proof = json.loads((out / "training_proof.json").read_text())
    assert proof["environment"]["devices"][0]["device"] == "cpu"
    assert proof["repeated_share_of_text"] == tasks.repeated_share()
    with open(out / "training_curves.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["step", "hf", "ours", "hf_moved_1", "hf_moved_2"]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    ours = [abs(float(line[2]) - float(line[1])) for line in lines]
    assert proof["curves"]["largest_distance_ours"] == max(ours) < 1e-4
    assert proof["curves"]["first_loss"] == float(lines[0][1])
    assert proof["curves"]["last_loss"] == float(lines[2][1])
    # Two moved runs of three steps are no measure of noise: which word it is depends on the CPU.
    noise = proof["curves"]["largest_distance_of_one_rounding"]
    assert noise == max(abs(float(line[n]) - float(line[1])) for line in lines for n in (3, 4))
    assert proof["curves"]["within_noise"] == (max(ours) <= 2 * noise)
    word = "yes" if proof["curves"]["within_noise"] else "NO"
    assert f"same curve within noise: {word}" in printed
    assert (out / "training_curves.png").stat().st_size > 10_000

    assert proof["pretraining"]["steps"] == 2
    assert proof["pretraining"]["unigram_perplexity"] > 50
    order, article = proof["finetuning"]["order"], proof["finetuning"]["article"]
    assert order["most_frequent_label"] == pytest.approx(0.5, abs=0.05)
    assert (order["steps"], article["steps"]) == (2, 1)
    for task in (order, article):
        for start in ("pretrained", "from_scratch"):
            found = task[start]
            assert found["test_accuracy"] == [found["mean_test_accuracy"]]
            assert set(found["eval_accuracy"]) == {"1e-09", "0.001"}
            best = max(found["eval_accuracy"].values())
            assert found["eval_accuracy"][f"{found['learning_rate']:g}"] == best


def test_a_start_is_judged_by_the_mean_over_seeds():
    runs = [{"eval": {"accuracy": 0.5}, "test": {"accuracy": part}} for part in (0.25, 1.0)]
    assert questions.mean(runs, "test") == 0.625


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("curves", "within_noise"), False),
        (("pretraining", "eval_perplexity"), 46.0),
        (("finetuning", "order", "from_scratch", "test_accuracy"), [0.5, 0.75]),
    ],
)
def test_one_bad_result_is_one_no(path, value):
    assert list(answers(PROOF).values()) == [True, True, True]
    proof = copy.deepcopy(PROOF)
    *parents, last = path
    place = proof
    for name in parents:
        place = place[name]
    place[last] = value
    assert list(answers(proof).values()).count(False) == 1


def test_the_plot_shows_every_curve(tmp_path):
    curves = {"hf": [3.0, 2.0], "ours": [3.0, 2.0 + 1e-6], "hf_moved_1": [3.0 + 2e-6, 2.0]}
    draw_curves(curves, tmp_path / "a.png")
    image = imread(tmp_path / "a.png")[..., :3]
    for colour in ((0xE6, 0x9F, 0x00), (0x00, 0x72, 0xB2), (0xAA, 0xAA, 0xAA)):
        distance = abs(image - [part / 255 for part in colour]).max(-1)
        assert (distance < 0.02).sum() > 20
    assert largest_distance(curves["ours"], curves["hf"]) == pytest.approx(1e-6)


def test_the_plot_hides_no_large_distance(tmp_path):
    curves = {"hf": [3.0, 2.0], "ours": [3.0, 2.5], "hf_moved_1": [3.0 + 2e-6, 2.0]}
    draw_curves(curves, tmp_path / "a.png")
    image = imread(tmp_path / "a.png")[..., :3]
    below = image[image.shape[0] // 2 :, image.shape[1] * 9 // 10 :]  # step 2
    assert (abs(below - [0, 0x72 / 255, 0xB2 / 255]).max(-1) < 0.02).sum() > 20
