"""Which of several workers a process is: by --shard, or by the environment of torchrun."""

from __future__ import annotations

import pytest
from messages import raises

from layerbank import RequestError
from layerbank.cache import Worker
from layerbank.extraction.ranks import choose_processes, parse_shard, refuse_shards, worker_of_launcher


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with raises("extraction.malformed_shard", RequestError, text=text):
        parse_shard(text)


def test_a_rank_that_does_not_fit_is_refused_and_a_world_of_one_is_no_worker() -> None:
    assert worker_of_launcher({}) is None
    assert worker_of_launcher({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    variables = "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0"
    with raises("extraction.bad_torchrun_environment", RequestError, variables=variables):
        worker_of_launcher({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_a_shard_in_several_processes_is_refused() -> None:
    with raises("extraction.processes_of_a_worker", RequestError, processes=2, worker="0/4"):
        choose_processes(2, "cpu", Worker(0, 4))


def test_a_shard_of_a_cluster_is_refused() -> None:
    refuse_shards(None)
    with raises("extraction.ray_with_shards", RequestError, worker="1/4"):
        refuse_shards(Worker(1, 4))
