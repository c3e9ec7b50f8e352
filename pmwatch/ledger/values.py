"""What is asked of the ledger and what it answers, in plain values."""

from dataclasses import dataclass
from enum import StrEnum

from pmwatch.errors import LedgerError
from pmwatch.model import Delivery, Destination, Fingerprint, State, Target


@dataclass(frozen=True, slots=True)
class Action:
    """What a person did: when (epoch seconds), who, by which command, why, and to which deliveries (`"3-17,20"`)."""

    at: float
    who: str
    command: str
    why: str = ""
    deliveries: str = ""
    id: int = 0


@dataclass(frozen=True, slots=True)
class ByHand:
    """A file that a person sends past every folder; `path` is absolute, or only a name where there is no file."""

    path: bytes
    fingerprint: Fingerprint
    target: Target
    destination: Destination
    sha256: str


class StaleClaim(LedgerError):
    """The delivery is not in the state that its caller believed; somebody else moved it."""

    reason = "stale_claim"


class Verdict(StrEnum):
    """What dedup says about a delivery whose hash is known."""

    SEND = "send"
    DUPLICATE = "duplicate"
    UNCHANGED = "unchanged"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Decided:
    """A verdict, and which delivery it rests on (0: none). `older` tells that newer versions went in between."""

    verdict: Verdict
    of: int = 0
    older: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """A delivery whose bytes the storage confirmed at `at` (epoch seconds). Without `dispose` its source stays."""

    delivery: Delivery
    sha256: str
    etag: str
    detail: str
    at: float
    dispose: bool


@dataclass(frozen=True, slots=True)
class Disposed:
    """A delivery whose source was archived at `location`, deleted, or left because it is a newer version (`kept`)."""

    delivery: Delivery
    location: bytes
    kept: bool
    at: float


@dataclass(frozen=True, slots=True)
class Blocker:
    """A delivery behind which others wait: how many, by folder."""

    delivery: Delivery
    waiting: dict[str, int]


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger holds about a path: enough to tell whether a look at it is news."""

    fingerprint: Fingerprint
    state: State
    kept: bool

    def is_news(self, seen: Fingerprint) -> bool:
        """Tell whether the file that was just seen still has to be entered.

        A changed ctime, inode or device alone is no news (chown, hard link, remount); any file is, where
        pmwatch had moved or deleted the one before it.
        """
        if self.state is State.VANISHED or not self.kept:
            return True
        return not self.fingerprint.same_content_as(seen)
