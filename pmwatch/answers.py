"""What the service answers: the status page, `pmwatch status` and `why`, and the gauges of a scrape."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote_from_bytes

from pmwatch import __version__
from pmwatch.delivery.gates import Gate, Gates
from pmwatch.errors import DestinationUnknown, PmwatchError
from pmwatch.explain import as_dict, blocker_as_dict, needing_a_person, why
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.rules import UNMAPPED
from pmwatch.intake.watch import Watcher
from pmwatch.ledger import Ledger
from pmwatch.metrics import Samples
from pmwatch.model import BY_HAND, PENDING, Folder, State, Target, display, format_duration, sentences
from pmwatch.processmind import Http

_OPEN: Final = (*PENDING, State.HELD, State.FAILED)
_CREATE: Final = "Create it, set create_missing = true for the folder, or move the file"


class Answers:
    """Reads what the parts of a running service know. Changes nothing; callable from any thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gates: Gates,
        watcher: Watcher,
        http: Http,
        state_dir: str,
        intakes: Callable[[], list[FolderIntake]],
        configured: Callable[[], Iterable[str]],
        unresolved: Callable[[], Mapping[Target, PmwatchError]],
        unaccounted: Mapping[str, int],
        phase: Callable[[], str],
        slowed: Callable[[], Mapping[str, int]],
    ) -> None:
        self._ledger = ledger
        self._gates = gates
        self._watcher = watcher
        self._http = http
        self._state_dir = state_dir
        self._intakes = intakes
        self._configured = configured
        self._unresolved = unresolved
        self._unaccounted = unaccounted
        self._phase = phase
        self._slowed = slowed
        self._started_at = time.time()

    def summary(self) -> str:
        """Return the state of everything in one line."""
        counts = Counter[str]()
        for (_, state), n in self._ledger.counts().items():
            counts[state] += n
        closed = [gate.name for gate in self._gates.all() if not gate.is_open]
        number = len(self._intakes())
        text = (
            f"watching {number} folder{'s' if number != 1 else ''}; {counts['queued']} queued, "
            f"{counts['uploading']} uploading, {counts['done']} done, {counts['held']} held, {counts['failed']} failed"
        )
        return text + (f"; waiting for {', '.join(closed)}" if closed else "")

    def status(self) -> dict[str, Any]:
        """Return everything the status page and `pmwatch status` show."""
        counts = self._ledger.counts()
        now = time.time()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "phase": self._phase(),
            "started_at": self._started_at,
            "summary": self.summary(),
            "folders": [
                *(_folder_status(intake, counts, now) for intake in self._intakes()),
                *(_removed_status(name, counts) for name in self._removed(counts)),
            ],
            "gates": [_gate_status(gate, now) for gate in self._gates.all()],
            "destinations": [
                {"target": str(target), "message": error.message, "hint": error.hint}
                for target, error in self._unresolved().items()
            ],
            "slowed": dict(self._slowed()),
            "blockers": [blocker_as_dict(blocker) for blocker in self._ledger.blockers()],
            "needs_a_person": needing_a_person(self._ledger),
            "deliveries": [as_dict(delivery) for delivery in self._ledger.list(limit=50)],
        }

    def why(self, path: bytes) -> dict[str, Any]:
        """Explain one absolute path."""
        intakes = {intake.folder.name: intake for intake in self._intakes()}
        folders = [intake.folder for intake in intakes.values()]
        answer = why(
            path,
            folders=folders,
            ledger=self._ledger,
            candidate_of=lambda name, below: intakes[name].candidate(below),
            now=time.time(),
            trouble_of=self.trouble_of,
        )
        return answer.as_dict()

    def unsettled(self, folder: str) -> dict[str, Any]:
        """Tell what a folder's intake has in hand: paths, percent-encoded, and whether it knows of more to come."""
        intake = next((one for one in self._intakes() if one.folder.name == folder), None)
        if intake is None:
            raise ValueError(f"there is no folder {folder!r}")
        paths, more = intake.in_hand()
        return {"paths": [quote_from_bytes(path) for path in paths], "more": more}

    def trouble_of(self, target: Target) -> str:
        """Say what deliveries to this target wait for on the other side, with the hint; empty for nothing."""
        unknown = self._unresolved().get(target)
        if unknown is not None:
            create = _CREATE if isinstance(unknown, DestinationUnknown) and not target.process else ""
            return sentences(unknown.message, unknown.hint, create)
        gate = self._gates.shut(target.tenant)
        if gate is None:
            return ""
        wait = gate.opens_at - time.monotonic()
        when = f"Next try in {format_duration(wait)}" if wait > 0 and not gate.probing else "It is being tried now"
        what = "tenant" if gate.name == target.tenant else f"storage ({gate.name})"
        return sentences(f"Its {what} waits: {gate.message}", gate.hint, when)

    def gauges(self) -> dict[str, Samples]:
        """Answer a scrape: cheap, however many rows the ledger has."""
        now = time.time()
        intakes = {intake.folder.name: intake.status() for intake in self._intakes()}
        counts, oldest, blocked = self._ledger.counts(), self._ledger.oldest_pending(), self._ledger.blocked()
        gates: Samples = {(gate.name,): float(gate.is_open) for gate in self._gates.all()}
        return {
            "pmwatch_deliveries": {
                (name, str(state)): counts.get((name, state), 0)
                for name in [*intakes, *self._removed(counts)]
                for state in State
            },
            "pmwatch_oldest_pending_seconds": {
                (name,): max(0.0, now - oldest[name]) if name in oldest else 0.0 for name in intakes
            },
            "pmwatch_blocked_files": {(name,): blocked.get(name, 0) for name in intakes},
            "pmwatch_settling_files": {(name,): status.settling for name, status in intakes.items()},
            "pmwatch_ignored_files": {
                (name, reason): n
                for name, status in intakes.items()
                for reason, n in ({UNMAPPED: 0} | status.ignored).items()
            },
            "pmwatch_oldest_unsettled_seconds": {
                (name,): max(0.0, now - status.oldest_unsettled_at) if status.oldest_unsettled_at else 0.0
                for name, status in intakes.items()
            },
            "pmwatch_last_success_timestamp_seconds": {
                (name,): at for name, at in self._ledger.last_success().items() if name in intakes
            },
            "pmwatch_gate_open": gates,
            "pmwatch_watch_up": {(name,): float(status.up) for name, status in intakes.items()},
            "pmwatch_inotify_watches": {(): self._watcher.count()},
            "pmwatch_unaccounted_files": {(name,): self._unaccounted.get(name, 0) for name in intakes},
            "pmwatch_free_bytes": self._free_bytes(),
            "pmwatch_clock_skew_seconds": {(): self._http.clock_skew_seconds},
        }

    def _removed(self, counts: Mapping[tuple[str, str], int]) -> list[str]:
        """Return the folders that are not in the configuration any more, and have files that did not end."""
        still = {folder for (folder, state), n in counts.items() if n and state in _OPEN}
        return sorted(still - {*self._configured(), BY_HAND})

    def _free_bytes(self) -> dict[tuple[str, ...], float]:
        folders = [intake.folder for intake in self._intakes()]
        places = {"state": self._state_dir} | {f"folder:{folder.name}": os.fsdecode(folder.root) for folder in folders}
        found: dict[tuple[str, ...], float] = {}
        for place, path in places.items():
            try:
                found[(place,)] = shutil.disk_usage(path).free
            except OSError:
                continue
        return found


def _folder_status(intake: FolderIntake, counts: Mapping[tuple[str, str], int], now: float) -> dict[str, Any]:
    folder, status = intake.folder, intake.status()
    return {
        "name": folder.name,
        "path": display(os.path.join(folder.root, *(level.encode() for level in folder.levels))),
        "target": _target_pattern(folder),
        "configured": True,
        "up": status.up,
        "polled": status.polled,
        "never_settling": [
            {"path": display(one.path), "seconds": max(0.0, now - one.seen_at), "waits_for": one.waits_for}
            for one in status.never_settling
        ],
        "problem": status.problem.message if status.problem else "",
        "hint": status.problem.hint if status.problem else "",
        "settling": status.settling,
        "ignored": status.ignored,
        "states": _states_of(folder.name, counts),
    }


def _removed_status(name: str, counts: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    return {
        "name": name,
        "path": "",
        "target": "",
        "configured": False,
        "up": False,
        "polled": "",
        "never_settling": [],
        "problem": "",
        "hint": "",
        "settling": 0,
        "ignored": {},
        "states": _states_of(name, counts),
    }


def _states_of(name: str, counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {str(state): counts.get((name, state), 0) for state in State}


def _target_pattern(folder: Folder) -> str:
    """Return the target with `{placeholders}` where the path gives it."""
    target, levels = folder.target, folder.levels
    parts = [("tenant", target.tenant), ("dataset", target.dataset), ("datatable", target.datatable)]
    shown = [value or (f"{{{name}}}" if f"{{{name}}}" in levels else "") for name, value in parts]
    process = target.process or ("{process}" if "{process}" in levels else "")
    return "/".join([*(part for part in shown if part), *([f"process:{process}"] if process else [])])


def _gate_status(gate: Gate, now: float) -> dict[str, Any]:
    return {
        "name": gate.name,
        "open": gate.is_open,
        "reason": gate.reason,
        "message": gate.message,
        "hint": gate.hint,
        "closed_seconds": 0.0 if gate.is_open else now - gate.closed_at,
    }
