"""Every kernel of a backend once or twice at small, awkward shapes: the sanitizer's workload.

    python3 -m benchmarks.micro.gpu_kernels [--device cuda] [--backend triton|cuda]

Sizes are no multiples of a tile, and each case switches on another part of the kernels. Results are
only looked at for values that are not finite: whether they are right is the tests' business.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
B, I, M, N = 2, 37, 19, 2
J = M + I
FEATURES = ("plain", "padding", "causal", "ranks", "bits", "dropout", "positions")


class Workload:
    """The cases, by name, on one device and backend."""

    def __init__(self, device: torch.device, backend: str) -> None:
        self._device, self._backend = device, backend
        self._generator = torch.Generator().manual_seed(0)

    def cases(self) -> dict[str, Callable[[], None]]:
        """Return what to run; each raises where a result is not finite."""
        cases: dict[str, Callable[[], None]] = {}
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            cases[f"masked_softmax {name}"] = partial(self.masked_softmax, dtype)
            cases[f"concat_memories {name}"] = partial(self.concat_memories, dtype)
            if self._backend == "cuda" and dtype == torch.float32:
                continue  # its attention is for half precision
            for features in FEATURES:
                run = partial(self.rel_attention, dtype, 64, features)
                cases[f"rel_attention {name} 64 {features}"] = run
            cases[f"rel_attention {name} 40"] = partial(self.rel_attention, dtype, 40, "plain")
            for deterministic in (False, True):
                run = partial(self.two_stream, dtype, deterministic)
                cases[f"two_stream {name} deterministic={deterministic}"] = run
        return cases

    def _draw(self, *shape: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(shape, generator=self._generator)
        return x.to(self._device, dtype).requires_grad_()

    def _operands(self, dtype: torch.dtype, dim: int, groups: int) -> dict[str, Any]:
        shapes = {
            "k": (B, I, N, dim), "v": (B, I, N, dim),
            "k_memory": (B, M, N, dim), "v_memory": (B, M, N, dim),
            "r": (groups, I + J, N, dim), "r_w_bias": (N, dim), "r_r_bias": (N, dim),
            "r_s_bias": (N, dim), "seg_embed": (2, N, dim),
        }  # fmt: skip
        return {name: self._draw(*shape, dtype=dtype) for name, shape in shapes.items()}

    def _mask(self, features: str) -> Any:
        from xlnet_fast.masks import AttentionMask, pack_bits

        order = torch.stack([torch.randperm(I, generator=self._generator) for _ in range(B)])
        padding = torch.zeros(B, J, dtype=torch.bool)
        padding[:, M : M + 11] = True
        hidden = torch.rand(B, I, J, generator=self._generator) < 0.3
        parts: dict[str, dict[str, Any]] = {
            "padding": {"key_padding": padding, "see_self": True},
            "causal": {"causal": True, "same_length": True},
            "ranks": {"rank_q": order, "rank_k": torch.cat([torch.full((B, M), -1), order], 1)},
            "bits": {"bits": pack_bits(hidden)},
        }
        chosen: dict[str, Any] = {
            name: part.to(self._device) if isinstance(part, Tensor) else part
            for name, part in parts.get(features, {}).items()
        }
        return AttentionMask(**chosen)

    def _segments(self) -> Tensor:
        segments = torch.zeros(B, J, dtype=torch.int64)
        segments[:, M + I // 2 :] = 1
        return segments.to(self._device)

    def _seed(self) -> Tensor:
        return torch.ones(1, dtype=torch.int64, device=self._device)

    def rel_attention(self, dtype: torch.dtype, dim: int, features: str) -> None:
        """One stream, forward and backward."""
        from xlnet_fast.ops import rel_attention

        operands = self._operands(dtype, dim, groups=B if features == "dropout" else 1)
        rows = 13 if features == "positions" else I
        q = self._draw(B, rows, N, dim, dtype=dtype)
        segments = self._segments()
        options: dict[str, Any] = {"segments_q": segments[:, M:]}
        if features == "dropout":
            options |= {"dropout_p": 0.1, "seed": self._seed()}
        if features == "positions":
            positions = torch.stack(
                [torch.randperm(I, generator=self._generator)[:rows] for _ in range(B)]
            )
            positions[0, 3] = -1
            options |= {"positions": positions.to(self._device), "memory_length": M}
            options["segments_q"] = segments[:, M : M + rows]
        out = rel_attention(
            q, **operands, segments_k=segments, mask=self._mask(features),
            backend=self._backend, **options,
        )  # fmt: skip
        self._go_back([out], [q, *operands.values()])

    def two_stream(self, dtype: torch.dtype, deterministic: bool) -> None:
        """Both streams with two groups of r, ranks and dropout, forward and backward."""
        from xlnet_fast.ops import two_stream_attention

        operands = self._operands(dtype, 64, groups=2)
        q_h, q_g = (self._draw(B, rows, N, 64, dtype=dtype) for rows in (I, 7))
        positions = torch.stack(
            [torch.randperm(I, generator=self._generator)[:7].sort().values for _ in range(B)]
        )
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(deterministic)
        try:
            outs = two_stream_attention(
                q_h, q_g, **operands, segments=self._segments(), mask=self._mask("ranks"),
                positions=positions.to(self._device), dropout_p=0.1, seed=self._seed(),
                backend=self._backend,
            )  # fmt: skip
            self._go_back(list(outs), [q_h, q_g, *operands.values()])
        finally:
            torch.use_deterministic_algorithms(before)

    def masked_softmax(self, dtype: torch.dtype) -> None:
        """Content, position and segment scores, padding and dropout, forward and backward."""
        from xlnet_fast.ops import masked_softmax

        scores = self._draw(B, N, I, J, dtype=dtype)
        position = self._draw(B, N, I, I + J, dtype=dtype)
        segment = self._draw(B, N, I, dtype=dtype)
        segments = self._segments()
        out = masked_softmax(
            scores, position_scores=position, segment_scores=segment, segments_q=segments[:, M:],
            segments_k=segments, mask=self._mask("padding"), scale=0.3, dropout_p=0.1,
            seed=self._seed(), backend=self._backend,
        )  # fmt: skip
        self._go_back([out], [scores, position, segment])

    def concat_memories(self, dtype: torch.dtype) -> None:
        """Five layers, with and without an earlier memory."""
        from xlnet_fast.ops import concat_memories

        hidden = [self._draw(I, B, 72, dtype=dtype).detach() for _ in range(5)]
        memory = [self._draw(M, B, 72, dtype=dtype).detach() for _ in range(5)]
        for earlier in (memory, None):
            self._look(concat_memories(hidden, earlier, 31, 23, backend=self._backend))

    def _go_back(self, outs: list[Tensor], leaves: list[Tensor]) -> None:
        gradients = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
        self._look([*outs, *gradients])

    @staticmethod
    def _look(results: Sequence[Tensor]) -> None:
        for result in results:
            if not bool(torch.isfinite(result).all()):
                raise ArithmeticError(f"a result of shape {tuple(result.shape)} is not finite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="triton")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    for name, run in Workload(device, options.backend).cases().items():
        print(name, flush=True)
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
