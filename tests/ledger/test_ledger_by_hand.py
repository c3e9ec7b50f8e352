"""What is sent past every folder: reserved like a delivery, so that equal content goes once, whoever dies meanwhile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.errors import LedgerError
from pmwatch.ledger import Action, ByHand, Decided, Ledger, StateLock, Verdict
from pmwatch.lock import is_held
from pmwatch.model import BY_HAND, Dedup, Delivery, State
from support.ledgers import DESTINATION, TARGET, back, claimed, drop, look, opened, sent, sha, succeed

BY = Action(1000.0, "ann", "upload")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path) as made:
        yield made


def begin(ledger: Ledger, content: str, *, force: bool = False) -> Decided:
    one = ByHand(b"/home/ann/a.csv", look(), TARGET, DESTINATION, sha(content))
    return ledger.begin_by_hand(one, force=force, now=900.0)


def decide(ledger: Ledger, delivery: Delivery, content: str) -> Decided:
    return ledger.decide([(delivery, sha(content), Dedup.CONTENT)])[0]


def test_a_folder_waits_for_what_is_sent_by_hand_and_then_has_a_duplicate(ledger: Ledger) -> None:
    by_hand = begin(ledger, "A")
    assert by_hand.verdict is Verdict.SEND
    drop(ledger, "1.csv")
    delivery = claimed(ledger)
    assert not ledger.reserve_size(delivery), "its size is on its way"
    assert decide(ledger, delivery, "A").verdict is Verdict.WAIT
    ledger.uploaded_by_hand(by_hand.of, etag="e", by=BY)
    assert decide(ledger, delivery, "A") == Decided(Verdict.DUPLICATE, by_hand.of)
    recorded = ledger.get(by_hand.of)
    assert recorded is not None
    assert (recorded.folder, recorded.state, recorded.outcome, recorded.etag) == (BY_HAND, "done", "uploaded", "e")
    assert ledger.counts()[BY_HAND, "done"] == 1
    assert ledger.counts()[BY_HAND, "uploading"] == 0


def test_a_folder_sends_what_did_not_arrive_by_hand(ledger: Ledger) -> None:
    by_hand = begin(ledger, "A")
    drop(ledger, "1.csv")
    delivery = claimed(ledger)
    assert decide(ledger, delivery, "A").verdict is Verdict.WAIT
    ledger.left_by_hand(by_hand.of)
    assert decide(ledger, delivery, "A").verdict is Verdict.SEND
    assert ledger.get(by_hand.of) is None


def test_by_hand_waits_for_a_folder(ledger: Ledger) -> None:
    drop(ledger, "1.csv")
    delivery = claimed(ledger)
    assert decide(ledger, delivery, "A").verdict is Verdict.SEND
    assert begin(ledger, "A") == Decided(Verdict.WAIT, delivery.id)
    assert begin(ledger, "B").verdict is Verdict.SEND
    succeed(ledger, delivery, "A")
    assert begin(ledger, "A") == Decided(Verdict.DUPLICATE, delivery.id)


def test_by_hand_waits_for_a_file_of_the_same_size_whose_hash_nobody_knows_yet(ledger: Ledger) -> None:
    drop(ledger, "1.csv")
    delivery = claimed(ledger)
    assert ledger.reserve_size(delivery)
    assert begin(ledger, "A") == Decided(Verdict.WAIT, delivery.id)
    back(ledger, delivery)
    assert begin(ledger, "A").verdict is Verdict.SEND


def test_force_goes_beside_an_equal_one_and_past_one_that_arrived(ledger: Ledger) -> None:
    first = begin(ledger, "A")
    second = begin(ledger, "A", force=True)
    assert second.verdict is Verdict.SEND
    for one in (first, second):
        ledger.uploaded_by_hand(one.of, etag="", by=BY)
    assert begin(ledger, "A").verdict is Verdict.DUPLICATE
    assert begin(ledger, "A", force=True).verdict is Verdict.SEND


def test_nothing_waits_behind_it_and_no_folder_counts_it_as_its_own(ledger: Ledger) -> None:
    sent(ledger, "0.csv", "0")
    begin(ledger, "A")
    drop(ledger, "1.csv")
    assert ledger.total(State.QUEUED, State.UPLOADING) == 1
    assert claimed(ledger).path == b"1.csv"


def test_a_start_of_the_daemon_leaves_alone_what_another_process_sends(tmp_path: Path, ledger: Ledger) -> None:
    by_hand = begin(ledger, "A")
    daemon = Ledger.open(str(tmp_path))
    daemon.recover()
    daemon.drop_left_by_hand()
    daemon.adopt(["orders"])
    daemon.close()
    ledger.uploaded_by_hand(by_hand.of, etag="", by=BY)
    assert begin(ledger, "A").verdict is Verdict.DUPLICATE


def test_what_a_killed_process_was_sending_is_forgotten_and_goes(tmp_path: Path, ledger: Ledger) -> None:
    program = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path; from support.ledgers import opened; from test_ledger_by_hand import begin\n"
        "with opened(Path(sys.argv[1])) as ledger:\n"
        "    print(begin(ledger, 'A').verdict, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = Path(__file__).parent
    line = [sys.executable, "-c", program, str(tmp_path), str(here.parent), str(here)]
    died = subprocess.run(line, capture_output=True, check=False, text=True)
    assert (died.stdout, died.returncode) == ("send\n", -9), died.stderr
    drop(ledger, "1.csv")
    delivery = claimed(ledger)
    assert decide(ledger, delivery, "A").verdict is Verdict.WAIT
    ledger.drop_left_by_hand()
    assert decide(ledger, delivery, "A").verdict is Verdict.SEND
    assert ledger.counts()[BY_HAND, "uploading"] == 0


def test_closing_the_ledger_gives_up_what_was_being_sent(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        begin(first, "A")
    with opened(tmp_path) as second:
        assert begin(second, "A").verdict is Verdict.SEND


def test_a_lock_that_cannot_be_had_is_told_and_nothing_is_entered(tmp_path: Path, ledger: Ledger) -> None:
    os.symlink("/nowhere/else", tmp_path / "uploads.lock")
    with pytest.raises(LedgerError, match=r"uploads\.lock") as caught:
        begin(ledger, "A")
    assert caught.value.hint
    assert ledger.list() == []
    assert (BY_HAND, "uploading") not in ledger.counts()


def test_whether_a_daemon_works_on_a_state_directory(tmp_path: Path) -> None:
    assert not is_held(str(tmp_path))
    lock = StateLock(str(tmp_path))
    lock.acquire()
    assert is_held(str(tmp_path))
    lock.release()
    assert not is_held(str(tmp_path))
