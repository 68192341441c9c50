"""int8: products of the layers in 8 bits, of a folder with safetensors.

A weight row has one scale, and so has each token's activation (symmetric, by the largest value), as
in torchao's ``Int8DynamicActivationInt8WeightConfig``. So no token changes another's result: what a
text gets alone it gets in any batch. The product is exact in int32, ``torch._int_mm``.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from xlnet_fast.checkpoint import CLASSES, first_line, load_config
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf import accelerate, linear_attention

FILE = "int8.safetensors"
"""Not ``model.safetensors``: ``from_pretrained`` would take the integers for weights."""
_LARGEST = 127


class Int8Linear(nn.Module):
    """``nn.Linear`` without a gradient, on the CPU.

    Attributes:
        weight: (out, in) int8. scale: (out) float32, a row's unit. bias: (out) float32 or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The nearest to a layer in float32; on the meta device only its shape."""
        whole = linear.weight.detach().float()
        scale = whole.abs().amax(1) / _LARGEST
        steps = (whole / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        return cls(steps.to(torch.int8), scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float32 to (..., out).

        Raises:
            ArgumentError: a gradient of x is asked for, and rounding has none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError("an int8 layer has no gradient: call it under torch.no_grad()")
        rows = x.reshape(-1, x.shape[-1])
        unit = rows.abs().amax(1, keepdim=True) / _LARGEST
        # A row of zeros has the unit 0, and NaN stays in its row, through the unit.
        steps = (rows / unit.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        out = torch._int_mm(steps, self.weight.t()).to(torch.float32)
        out.mul_(self.scale).mul_(unit)
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(x.dtype).view(*x.shape[:-1], self.weight.shape[0])

    def extra_repr(self) -> str:
        """As ``nn.Linear``."""
        out, width = self.weight.shape
        return f"in_features={width}, out_features={out}, bias={self.bias is not None}"


def quantise(model: Any) -> Any:
    """Put int8 in the place of each layer's linear parts: q, k, v, o, r and the feed-forward.

    The heads and the embeddings stay, which are little of the time.

    Args:
        model: accelerated, in float32, in evaluation; changed in place, ``restore`` is lost.
    """
    linear_attention(model)
    transformer = getattr(model, "transformer", model)
    for layer in transformer.layer:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, Int8Linear.of(child))
    return model.requires_grad_(False)


def write(model: Any, architecture: str, folder: Path) -> None:
    """Write weights and config of a quantised model into a folder; ``architecture``: HF's class."""
    kept, storages = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in storages:
            continue  # tied: the embeddings are a language model's head too
        storages.add(tensor.data_ptr())
        kept[name] = tensor.contiguous()
    safetensors.torch.save_file(kept, folder / FILE, metadata={"format": "xlnet_fast int8"})
    config = copy.deepcopy(model.config)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / FILE)  # else its owner alone may read it


def load_int8(folder: str | Path) -> Any:
    """The model of a folder that ``xlnet-fast export --format int8`` wrote.

    Returns:
        An accelerated model of Hugging Face's class, on the CPU, in evaluation, without gradients.

    Raises:
        ArgumentError: the folder is none, or its weights cannot be read; says why.
    """
    folder = Path(folder).expanduser()
    if not (folder / FILE).is_file():
        raise ArgumentError(f"{folder} holds no {FILE}: expected a folder of export --format int8")
    config = load_config(str(folder))
    name = next((a for a in config.architectures or () if a in CLASSES), "XLNetModel")
    try:
        weights = safetensors.torch.load_file(folder / FILE)
    except (SafetensorError, OSError) as error:
        raise ArgumentError(f"{folder / FILE} cannot be read: {first_line(error)}") from error
    with torch.device("meta"):
        model = getattr(transformers, name)(config).eval()
    model = quantise(accelerate(model))
    try:
        found = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise ArgumentError(f"{folder / FILE} is of another model: {first_line(error)}") from error
    model.tie_weights()
    absent = [key for key, x in model.state_dict().items() if x.is_meta]
    if absent or found.unexpected_keys:
        odd = (absent or found.unexpected_keys)[0]
        raise ArgumentError(
            f"{folder / FILE} is of another model, or cut short: {odd} is "
            f"{'missing' if absent else 'unknown'}"
        )
    return model.requires_grad_(False)


def example(portable: bool = False) -> list[str]:
    """Lines of Python that load the folder they run in and define ``run``."""
    return [
        "import torch",
        "from xlnet_fast.export import load_int8",
        'model = load_int8(".")',
        "run = lambda ids, mask, segments: model("
        "input_ids=ids, attention_mask=mask, token_type_ids=segments, return_dict=False)",
    ]
