"""The gradient of a table whose rows are looked up and that is also the weight of a product."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xlnet_fast.nn import tied_rows
from xlnet_fast.nn.tied_rows import rows_of, weight_of_product

ROWS, WIDTH = 11, 6
IDS = torch.tensor([[3, 0, 3], [10, 7, 3]])  # one of them three times


class Model(nn.Module):
    """Looks up, mixes, and multiplies with the table; ``fused`` or as PyTorch has it."""

    def __init__(self, fused: bool, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(
            torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        )
        self.mix = nn.Parameter(
            torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        )
        self.fused = fused

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        return rows_of(self.table, ids) if self.fused else F.embedding(ids, self.table)

    def weight(self) -> torch.Tensor:
        return weight_of_product(self.table) if self.fused else self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self.look_up(ids) @ self.mix, self.weight()).tanh()


@pytest.fixture
def pair():
    return Model(True), Model(False)


@pytest.fixture
def waited(monkeypatch):
    """How often a product's gradient was added to where it lies."""
    added = []
    add = tied_rows._add_rows

    def spy(target, at, rows):
        added.append(target.data_ptr())
        add(target, at, rows)

    monkeypatch.setattr(tied_rows, "_add_rows", spy)
    return added


def same_gradients(ours: nn.Module, plain: nn.Module) -> None:
    for (name, x), y in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert x.grad.layout == torch.strided, name
        torch.testing.assert_close(x.grad, y.grad, msg=name)


def test_both_gradients_are_in_one_tensor(pair, waited):
    for model in pair:
        model(IDS).pow(2).sum().backward()
    same_gradients(*pair)
    assert waited == [pair[0].table.grad.data_ptr()]


def test_gradients_are_added_to_those_before(pair, waited):
    for model in pair:
        for _ in range(3):
            model(IDS).sum().backward()
    same_gradients(*pair)
    assert len(waited) == 3


@pytest.mark.parametrize("part", ["rows", "product"])
def test_one_of_the_two_alone(pair, waited, part):
    for model in pair:
        found, weight = model.look_up(IDS), model.weight()
        (
            found if part == "rows" else F.linear(torch.ones(2, WIDTH).double(), weight)
        ).sum().backward()
    torch.testing.assert_close(pair[0].table.grad, pair[1].table.grad)
    assert not waited


def test_one_pass_over_half_of_the_graph_leaves_the_other_half_whole(pair, waited):
    for model in pair:
        looked_up = model.look_up(IDS)
        cut = looked_up.detach().requires_grad_()
        F.linear(cut @ model.mix, model.weight()).sum().backward()
        looked_up.backward(cut.grad)
    same_gradients(*pair)
    assert not waited


def test_a_lookup_that_the_product_does_not_need_and_is_met_first(pair):
    for model in pair:
        weight = model.weight()
        product = F.linear(torch.ones(2, WIDTH).double(), weight).sum()
        late = model.look_up(IDS)  # later in the forward pass, so earlier in the backward pass
        (product * 2 + late.pow(2).sum()).backward()
    torch.testing.assert_close(pair[0].table.grad, pair[1].table.grad)


def test_two_lookups_and_two_products(pair, waited):
    for model in pair:
        total = model(IDS).sum() + model(IDS.flip(0)).pow(2).sum() + model.look_up(IDS).sum()
        total.backward()
    same_gradients(*pair)
    assert waited


def test_a_graph_that_is_kept_and_met_again(pair):
    for model in pair:
        loss = model(IDS).pow(2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    same_gradients(*pair)


def test_gradients_that_are_asked_for_by_name(pair, waited):
    found = []
    for model in pair:
        loss = model(IDS).pow(2).sum()
        found.append(torch.autograd.grad(loss, [model.mix, model.table], retain_graph=True))
        found[-1] += torch.autograd.grad(loss, [model.mix])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
    assert len(waited) == 1
    # of the intermediate weight alone: the lookup is in no way to it
    weight = pair[0].weight()
    (alone,) = torch.autograd.grad(F.linear(pair[0].look_up(IDS), weight).sum(), [weight])
    looked_up = pair[0].table.detach()[IDS].sum((0, 1))
    torch.testing.assert_close(alone, looked_up.expand(ROWS, WIDTH))


def test_derivatives_of_gradients(pair, waited):
    for model in pair:
        (grad,) = torch.autograd.grad(model(IDS).pow(2).sum(), [model.table], create_graph=True)
        grad.pow(2).sum().backward()
    same_gradients(*pair)
    assert torch.autograd.gradcheck(
        lambda table: F.linear(rows_of(table, IDS), weight_of_product(table)).tanh(),
        [pair[0].table],
    )


def test_many_gradients_at_once(pair):
    found = []
    for model in pair:
        out = model(IDS)
        many = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
        found.append(torch.autograd.grad(out, [model.table], many, is_grads_batched=True)[0])
    torch.testing.assert_close(*found)


def test_hooks_of_the_table_see_the_whole_gradient(pair):
    seen = []
    for model in pair:
        model.table.register_hook(lambda grad: seen.append(grad.clone()))
        model(IDS).sum().backward()
    torch.testing.assert_close(*seen)


def test_a_gradient_that_others_hold_is_left_alone(pair):
    for model in pair:
        looked_up = model.look_up(IDS)
        # of a sum all gradients are one number, spread: not to be added to
        (model.weight().sum() * looked_up.sum()).backward()
    torch.testing.assert_close(pair[0].table.grad, pair[1].table.grad)


def test_a_pass_that_raises_does_not_leave_its_gradient_to_the_next(pair):
    def refuse(grad):
        raise RuntimeError("no")

    for model in pair:
        loss = model(IDS).pow(2).sum()
        handle = model.mix.register_hook(refuse)
        with pytest.raises(RuntimeError, match="no"):
            loss.backward(retain_graph=True)
        handle.remove()
        model.zero_grad()
        loss.backward()
    same_gradients(*pair)


def test_a_gradient_left_by_a_pass_that_raised_is_in_no_other_pass(pair, waited):
    """The next one meets the lookup alone."""

    def refuse(grad):
        raise RuntimeError("no")

    for model in pair:
        looked_up = model.look_up(IDS)
        loss = F.linear(looked_up @ model.mix, model.weight()).sum()
        handle = model.mix.register_hook(refuse)
        with pytest.raises(RuntimeError, match="no"):
            loss.backward(retain_graph=True)
        handle.remove()
        model.zero_grad()
        looked_up.sum().backward()
    torch.testing.assert_close(pair[0].table.grad, pair[1].table.grad)
    assert not waited


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_one_word_are_summed_before_they_are_rounded(dtype):
    """Added one by one to a large number, none of them would be seen."""
    table = nn.Parameter(torch.zeros(ROWS, WIDTH, dtype=dtype))
    found = rows_of(table, torch.full((64,), 4))
    product = F.linear(found * 2**-9 + 256, weight_of_product(table))
    product.backward(torch.full_like(product, 2**-6))
    # 64 rows give each word 256; the words are zeros, so what is looked up gets nothing
    assert bool(table.grad.eq(256).all())
    total = torch.full((2, WIDTH), 256.0, dtype=dtype)
    tied_rows._add_rows(total, torch.ones(64, dtype=torch.int64), torch.full((64, WIDTH), 2**-4))
    assert total[:, 0].tolist() == [256, 260]


def test_nothing_is_kept_of_a_table_or_a_graph():
    model = Model(True)
    model(IDS).sum().backward()
    model(IDS)  # never met by a backward pass
    gc.collect()
    assert all(reference() is None for reference in tied_rows._LOOKUPS[model.table])
    before = len(tied_rows._LOOKUPS)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(IDS).sum().backward()
    del model, twin
    gc.collect()
    assert len(tied_rows._LOOKUPS) < before


def test_where_it_makes_no_difference_the_table_is_taken_as_it_is():
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    with torch.no_grad():
        assert weight_of_product(table) is table
    assert weight_of_product(table.detach()).grad_fn is None
    half = table * 0.5  # no leaf: its gradients meet elsewhere
    assert weight_of_product(half) is half
