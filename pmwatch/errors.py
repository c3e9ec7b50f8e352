"""The error tree. Lower errors (httpx, SQLAlchemy, OSError) are translated once, at the boundary.

    PmwatchError                     hint: what a person should do next; decision: what pmwatch does
    ├── ConfigError                  the configuration's text is wrong; exit 78
    │   └── PlanError                the text of a plan for a tenant is wrong; exit 78
    ├── LockedError                  another pmwatch holds the state directory
    ├── Unhealthy                    the running pmwatch is ill, not ready, or does not answer
    ├── LedgerError                  the ledger cannot be used
    │   └── LedgerNewer              a newer pmwatch wrote it; exit 78
    ├── FolderDown                   a folder cannot be read now; it comes back by itself
    ├── KeyUnavailable               a tenant's API key cannot be read now          (gate)
    ├── SourceError                  trouble of one file
    │   ├── SourceVanished           it is gone
    │   ├── SourceAway               what it lies on is not mounted now             (retry)
    │   ├── SourceChanged            it is no longer the version that settled
    │   └── SourceUnreadable         it cannot be opened or read                    (retry)
    ├── RemoteError                  trouble with the remote end
    │   ├── Unreachable              no connection, DNS, TLS, time-out              (gate)
    │   ├── AnswerLost               sent, but nobody knows whether it arrived      (retry)
    │   ├── Throttled                429 or 503: come back later                    (gate)
    │   ├── KeyRejected              401 or 403 from the API                        (gate)
    │   ├── UrlExpired               the presigned URL is no longer valid           (retry)
    │   ├── AlreadyThere             412: an earlier PUT to this URL arrived
    │   ├── ServerFault              5xx, or an answer that makes no sense          (gate)
    │   ├── DestinationUnknown       the tenant, dataset or datatable is not there  (retry)
    │   ├── ChecksumMismatch         the storage holds something else than was sent (retry)
    │   └── Rejected                 the request will never be accepted as it is    (fail)
    ├── Refused                      a guard or its format speaks against the file       (hold or fail)
    ├── Interrupted                  pmwatch itself stopped the attempt             (retry)
    └── DisposeError                 the source could not be archived or deleted    (retry)

No message ever holds an API key, a presigned URL, or the text of a lower exception.
"""

from enum import StrEnum


class Decision(StrEnum):
    """What pmwatch does about an error of a delivery."""

    RETRY = "retry"
    GATE = "gate"
    FAIL = "fail"
    HOLD = "hold"


class ExitCode:
    """Exit codes of the commands; systemd must not restart after USAGE and CONFIG.

    CONFIG is also for a ledger that only a newer pmwatch can read: no restart mends either.
    """

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 78


class PmwatchError(Exception):
    """Any error that pmwatch explains. `reason` is a stable short word for metrics, logs and the ledger."""

    reason = "error"
    hint = ""
    decision = Decision.FAIL
    of_file = True  # whether it counts against the file (`give_up_after`), or is trouble of the destination

    def __init__(self, message: str, *, hint: str = "", reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint:
            self.hint = hint
        if reason is not None:
            self.reason = reason

    @property
    def sentence(self) -> str:
        """The message as a person is told it."""
        return self.message


class ConfigError(PmwatchError):
    """The configuration is wrong. `problems` lists all that was found, one line each; `subject` is what is wrong."""

    reason = "config"
    subject = "configuration"

    def __init__(self, problems: list[str], *, hint: str = "") -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class PlanError(ConfigError):
    """The plan of what a tenant should have is wrong."""

    reason = "plan"
    subject = "plan"


class LockedError(PmwatchError):
    """Another pmwatch holds the state directory."""

    reason = "locked"


class Unhealthy(PmwatchError):
    """No pmwatch answers that it is well."""

    reason = "unhealthy"


class LedgerError(PmwatchError):
    """The ledger cannot be opened, read or written."""

    reason = "ledger"


class LedgerNewer(LedgerError):
    """The ledger was written by a newer pmwatch, and this one cannot know what is in it."""

    reason = "ledger_newer"


class FolderDown(PmwatchError):
    """A folder cannot be watched or read now; it is tried again with back-off."""

    reason = "folder_down"


class KeyUnavailable(PmwatchError):
    """A tenant's API key cannot be read now."""

    reason = "key_unavailable"
    decision = Decision.GATE


class SourceError(PmwatchError):
    """Trouble of one file."""

    reason = "source"
    decision = Decision.RETRY


class SourceVanished(SourceError):
    """The source is gone."""

    reason = "vanished"


class SourceAway(SourceError):
    """The file system that the source lies on is not mounted now, or its folder is gone: no word about the file."""

    reason = "folder_away"
    of_file = False


class SourceChanged(SourceError):
    """The source is no longer the version that settled."""

    reason = "source_changed"


class SourceUnreadable(SourceError):
    """The source cannot be opened or read."""

    reason = "unreadable"


class RemoteError(PmwatchError):
    """Trouble with the remote end. `status` is the HTTP status, `code` S3's XML code, `request_id` theirs."""

    reason = "remote"
    hint = "Such trouble mostly passes."
    decision = Decision.RETRY

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        reason: str | None = None,
        status: int | None = None,
        code: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, reason=reason)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after

    @property
    def sentence(self) -> str:
        """The message, and the id by which the other side finds the request in its logs, where it gave one."""
        return self.message + (f" (request id {self.request_id})" if self.request_id else "")


class Unreachable(RemoteError):
    """The request never reached the server: connection, DNS, TLS or time-out before it was sent."""

    reason = "unreachable"
    decision = Decision.GATE


class AnswerLost(RemoteError):
    """The request was sent, but no answer came: it may or may not have arrived."""

    reason = "answer_lost"
    hint = "What was asked may have been done all the same."


class Throttled(RemoteError):
    """429 or 503: the server asks to come back later (`retry_after`, seconds, where it says when)."""

    reason = "throttled"
    hint = "The service asks for less at a time; come back later."
    decision = Decision.GATE


class KeyRejected(RemoteError):
    """The API refused the key (401 or 403)."""

    reason = "key_rejected"
    decision = Decision.GATE


class UrlExpired(RemoteError):
    """The presigned URL is no longer valid; a new one is needed."""

    reason = "url_expired"


class AlreadyThere(RemoteError):
    """412 to `If-None-Match: *`: an earlier PUT to this URL arrived."""

    reason = "already_there"
    hint = "Nothing is left to do."


class ServerFault(RemoteError):
    """5xx, or an answer that makes no sense."""

    reason = "server_fault"
    hint = "The service has trouble of its own, which mostly passes."
    decision = Decision.GATE


class DestinationUnknown(RemoteError):
    """The tenant, dataset or datatable does not exist, or its name is not unique."""

    reason = "destination_unknown"
    of_file = False


class ChecksumMismatch(RemoteError):
    """The storage confirmed other bytes than those that were sent."""

    reason = "checksum_mismatch"


class Rejected(RemoteError):
    """The remote end will never accept this request as it is."""

    reason = "rejected"
    hint = "The service refuses this request; see its message."
    decision = Decision.FAIL


class Refused(PmwatchError):
    """A guard, or the check of its format, says that a file should not go as it is."""

    reason = "refused"
    decision = Decision.HOLD

    def __init__(self, message: str, *, reason: str, hint: str = "", fail: bool = False) -> None:
        super().__init__(message, hint=hint, reason=reason)
        if fail:
            self.decision = Decision.FAIL


class Interrupted(PmwatchError):
    """pmwatch itself stopped the attempt: shutdown after the grace."""

    reason = "interrupted"
    decision = Decision.RETRY
    of_file = False


class DisposeError(PmwatchError):
    """The source could not be archived or deleted after the upload; the upload itself is safe."""

    reason = "dispose"
    decision = Decision.RETRY
