from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.balance import Balancer
from serving.gateway.spec import BALANCING, GatewaySpec


@dataclass
class Server:
    outstanding: int
    number: int = 0


def servers(*outstanding: int) -> list[Server]:
    return [Server(load, number) for number, load in enumerate(outstanding, start=1)]


def test_the_least_loaded_is_chosen_and_equals_take_turns() -> None:
    balancer = Balancer(GatewaySpec())
    assert balancer.choose(servers(3, 1, 2)) == 1
    assert [balancer.choose(servers(0, 0, 0)) for _ in range(4)] == [2, 0, 1, 2]


def test_round_robin_does_not_look_at_the_load() -> None:
    balancer = Balancer(GatewaySpec(balancing="round_robin"))
    assert [balancer.choose(servers(9, 0, 0)) for _ in range(4)] == [0, 1, 2, 0]


def test_two_choices_never_takes_the_most_loaded_of_many() -> None:
    balancer = Balancer(GatewaySpec(balancing="two_choices"), random.Random(0))
    chosen = {balancer.choose(servers(5, 0, 0, 0)) for _ in range(200)}
    assert chosen == {1, 2, 3}


def test_a_prefix_stays_at_its_replica_until_that_is_loaded_above_the_bound() -> None:
    balancer = Balancer(GatewaySpec(balancing="prefix_hash"))
    fleet = servers(0, 0, 0, 0)
    home = balancer.choose(fleet, prefix=7)
    assert home is not None
    assert {balancer.choose(fleet, prefix=7) for _ in range(20)} == {home}
    fleet[home].outstanding = 50
    assert balancer.choose(fleet, prefix=7) != home


def test_a_replica_that_leaves_moves_only_its_own_prefixes() -> None:
    balancer = Balancer(GatewaySpec(balancing="prefix_hash"))
    fleet = servers(0, 0, 0, 0)
    before = {p: fleet[balancer.choose(fleet, p) or 0].number for p in range(200)}
    left = [s for s in fleet if s.number != 2]
    after = {p: left[balancer.choose(left, p) or 0].number for p in range(200)}
    assert all(after[p] == before[p] for p in before if before[p] != 2)


@given(
    policy=st.sampled_from(BALANCING),
    loads=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    most=st.integers(1, 20),
    prefix=st.integers(0, 2**32 - 1),
)
def test_nobody_gets_more_than_it_may(
    policy: str, loads: list[int], most: int, prefix: int
) -> None:
    spec = GatewaySpec.model_validate({"balancing": policy, "max_outstanding": most})
    position = Balancer(spec).choose(servers(*loads), prefix)
    if min(loads) >= most:
        assert position is None
    else:
        assert position is not None
        assert loads[position] < most


def test_nobody_is_chosen_of_none() -> None:
    assert Balancer(GatewaySpec()).choose([]) is None
    with pytest.raises(ValueError, match="max_outstanding"):
        GatewaySpec(max_outstanding=0)
