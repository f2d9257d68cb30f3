"""The batch rule is the reference's, and every image is seen once an epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises

from layerbank.probes.data.batches import SMALLEST_BATCH, BatchPlan, choose_batch_size, plan_batches
from layerbank.probes.errors import DataError

REFERENCE = {  # data set: (training images, batch size of the authors' code)
    "FER2013": (28709, 1979),
    "VOC 2007": (7844, 1426),
    "Stanford Cars": (8144, 1480),
    "FGVC Aircraft": (3334, 606),
    "STL-10": (5000, 1000),
    "GTSRB": (26640, 1973),
    "Country-211": (31650, 2110),
    "Caltech-101": (2753, 500),
    "CIFAR": (45000, 2048),
    "Diabetic Retinopathy": (35126, 2007),
    "Dmlab": (65550, 2016),
    "DTD": (1880, 376),
    "EuroSAT": (16200, 2048),
    "Flowers": (1020, 204),
    "Pets": (2944, 535),
    "PCAM": (262144, 2048),
    "RESISC45": (18900, 2100),
    "SVHN": (65931, 2028),
    "ImageNet-1k": (1281167, 2048),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_batch_sizes_are_those_of_the_reference(name: str) -> None:
    num_samples, batch_size = REFERENCE[name]
    assert choose_batch_size(num_samples) == batch_size


@settings(deadline=None)
@given(num_samples=st.integers(2, 20_000), wish=st.integers(32, 4096))
def test_the_rule_holds_wherever_it_can(num_samples: int, wish: int) -> None:
    size = choose_batch_size(num_samples, wish)
    assert size >= SMALLEST_BATCH
    if size > SMALLEST_BATCH:
        assert num_samples // size >= 5
        assert num_samples % size == 0 or num_samples % size >= size / 2


@settings(deadline=None)
@given(num_samples=st.integers(2, 500), batch_size=st.integers(2, 600), num_epochs=st.integers(1, 3))
def test_every_epoch_sees_every_sample_once_and_no_batch_is_of_one(
    num_samples: int, batch_size: int, num_epochs: int
) -> None:
    plan = BatchPlan(num_samples=num_samples, batch_size=batch_size, num_epochs=num_epochs)
    batches = list(plan.batches(seed=0))
    assert len(batches) == plan.num_steps
    assert min(len(batch) for batch in batches) >= 2
    for epoch in range(num_epochs):
        of_epoch = batches[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        assert torch.equal(torch.cat(of_epoch).sort().values, torch.arange(num_samples))


def test_a_last_batch_of_one_joins_the_batch_before() -> None:
    plan = BatchPlan(num_samples=9, batch_size=4, num_epochs=1)
    assert [len(batch) for batch in plan.batches(0)] == [4, 5]


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    plan = BatchPlan(num_samples=50, batch_size=50, num_epochs=2)
    first, second = plan.batches(seed=0)
    again, _ = plan.batches(seed=0)
    other, _ = plan.batches(seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_there_are_enough_epochs_for_the_minimum_of_steps() -> None:
    few = plan_batches(1020, wish=2048, epochs=40, min_steps=1000)
    assert (few.num_epochs, few.num_steps) == (200, 1000)
    many = plan_batches(65550, wish=2048, epochs=40, min_steps=1000)
    assert (many.num_epochs, many.steps_per_epoch) == (40, 33)


def test_one_image_cannot_be_trained_on() -> None:
    with raises("probes.too_few_images", DataError, num_images=1):
        plan_batches(1, wish=2048, epochs=1, min_steps=1)
