"""A fit by Lightning, with the losses that HF's model has."""

from __future__ import annotations

import lightning
import pytest
import torch
from hf_parity import F64, accelerated, random_ids, tiny_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import XLNetForSequenceClassification

import xlnet_fast


class Classifier(lightning.LightningModule):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch, number):
        ids, labels = batch
        loss = self.model(ids, labels=labels).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(model, folder, **options) -> Classifier:
    rows = TensorDataset(random_ids(8, 6), torch.arange(8) % 2)
    module = Classifier(model)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=4))
    return module


@pytest.mark.parametrize("linear", [False, True])
def test_losses_are_hugging_faces(linear, tmp_path):
    plain = tiny_model(XLNetForSequenceClassification, F64)
    ours = accelerated(plain)
    if linear:
        xlnet_fast.linear_attention(ours)
    options = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
    expected = fit(plain, tmp_path / "theirs", **options)
    found = fit(ours, tmp_path / "ours", **options)
    assert len(expected.losses) == 4
    assert expected.losses[-1] != expected.losses[0]
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=1e-10)

    (checkpoint,) = (tmp_path / "ours").rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    in_hugging_face = Classifier(tiny_model(XLNetForSequenceClassification, F64))
    in_hugging_face.load_state_dict(state)
    trained = expected.state_dict()
    for name, value in in_hugging_face.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=1e-8, atol=1e-9)


def test_mixed_precision(tmp_path):
    """bf16 by autocast, near what float32 gives."""
    losses = [
        fit(accelerated(tiny_model(XLNetForSequenceClassification)), tmp_path, precision=precision)
        for precision in ("32-true", "bf16-mixed")
    ]
    exact, mixed = (torch.tensor(module.losses) for module in losses)
    assert not torch.equal(exact, mixed)
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)
