from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, PeerError, RecipeError
from cmcr.trainer import loop
from cmcr.trainer.batches import Batches
from cmcr.trainer.ranks import ALONE, SeveralRanks
from cmcr.trainer.rendezvous import StoreBoard, joined, refuse_several
from cmcr.trainer.settings import FitSettings
from torch.distributed import TCPStore


class Silent:
    """A board on which nobody else writes."""

    def first(self, leads: bool, work: Callable[[], Any]) -> Any:
        return "of the first" if not leads else work()

    def meet(self) -> None:
        pass


class Store(dict[str, Any]):
    """torch's store as a dictionary."""

    def set(self, name: str, value: str) -> None:
        self[name] = value

    def check(self, names: list[str]) -> bool:
        return all(name in self for name in names)

    def add(self, name: str, count: int) -> int:
        self[name] = self.get(name, 0) + count
        return int(self[name])


@pytest.mark.parametrize(("rows", "size"), [(31, 2), (7, 7), (4096, 3), (10, 4)])
def test_every_row_of_a_batch_has_one_process(rows: int, size: int) -> None:
    parts = [np.arange(rows)[SeveralRanks(rank, size, Silent()).sharing(rows).own] for rank in range(size)]
    assert np.array_equal(np.concatenate(parts), np.arange(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(FitError, match="a batch of 3 rows cannot be shared among 4 processes"):
        SeveralRanks(0, 4, Silent()).sharing(3)


def test_a_process_that_sees_other_files_is_refused() -> None:
    SeveralRanks(0, 2, Silent()).agree("caches", "mine", "look")
    with pytest.raises(FitError, match="caches: rank 1 sees 'mine' where rank 0 sees 'of the first'"):
        SeveralRanks(1, 2, Silent()).agree("caches", "mine", "look")


def test_devices_that_cannot_train_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = SeveralRanks(5, 6, Silent(), "node", (2, 3))
    ranks.check_device(torch.device("cpu"))
    for device, message in (("mps", "no collectives"), ("cuda:1", "3 processes on node would all"), ("cuda", "2 GPUs")):
        with pytest.raises(FitError, match=message):
            ranks.check_device(torch.device(device))
    SeveralRanks(5, 6, Silent(), "node", (1, 2)).check_device(torch.device("cuda"))
    SeveralRanks(5, 6, Silent(), "node", (0, 1)).check_device(torch.device("cuda:1"))


def test_the_message_of_a_lost_process_has_no_place_in_anothers_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(tensor: torch.Tensor) -> None:
        raise RuntimeError("[/x/y/pair.cc:553] Connection closed by peer [::1]:3. This is typically a crash.\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    with pytest.raises(FitError, match="is gone or does not answer") as caught:
        SeveralRanks(1, 2, Silent(), "node").sum_(torch.zeros(1))
    assert caught.value.where == "rank 1 of 2 on node: Connection closed by peer [::1]:3"


def test_a_failure_ends_the_wait_and_is_claimed_once() -> None:
    store = Store()
    leader, other = StoreBoard(store, 2), StoreBoard(store, 2)
    assert leader.claim_failure()
    assert not other.claim_failure()
    with pytest.raises(PeerError):
        other.first(False, lambda: None)


def test_a_lost_store_is_told_by_whatever_word_comes_next() -> None:
    limit = timedelta(seconds=5)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=limit)
    board = StoreBoard(client, 2)
    assert board.first(True, lambda: [1]) == [1]
    with pytest.raises(RuntimeError, match="of the work itself"):
        board.first(True, fails)
    del server
    with suppress(RuntimeError):  # the first word after the loss may still go out
        client.set("x", "")
    words: dict[str, Callable[[], Any]] = {
        "set": lambda: board.first(True, lambda: 1),
        "wait": lambda: board.first(False, lambda: 1),
        "add": board.meet,
    }
    for name, word in words.items():
        with pytest.raises(FitError, match="joins this fit's processes is gone") as caught:
            word()
        assert "last checkpoint" in str(caught.value), name
    assert board.claim_failure(), "nobody would say why"


def fails() -> None:
    raise RuntimeError("of the work itself")


def test_a_store_lost_between_a_word_and_its_reading_is_told() -> None:
    class Forgetful(Store):
        def get(self, *name: Any) -> Any:
            raise RuntimeError("Broken pipe")

    with pytest.raises(FitError, match="joins this fit's processes is gone"):
        StoreBoard(Forgetful({"first/1": ""}), 2).first(False, lambda: 1)


@pytest.mark.parametrize("text", ["10m", "0", "-1", "nan", "inf", "1e300"])
def test_a_limit_of_collectives_that_is_no_number_of_seconds_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_COLLECTIVE_SECONDS", text)
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.raises(RecipeError, match="no number of seconds"), joined(place):
        pass


def test_an_objective_that_does_not_share_its_batches_is_refused() -> None:
    class Whole:
        model = torch.nn.Linear(1, 1)

    class Run:
        ranks = SeveralRanks(0, 2, Silent())

    with pytest.raises(FitError, match="does not share its batches among 2 processes"):
        loop.train(Whole(), Batches(4, 2, 0), FitSettings(method="m"), Run())  # type: ignore[arg-type]


def test_what_does_not_share_its_work_is_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("a comparison")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FitError, match="a comparison does not share its work"):
        refuse_several("a comparison")


def test_one_process_is_all_there_is() -> None:
    values = torch.randn(5)
    assert ALONE.sharing(5) is ALONE
    assert ALONE.gather(values) is values
    assert torch.equal(ALONE.mean(values), values.mean())
    assert ALONE.first(lambda: 3) == 3
