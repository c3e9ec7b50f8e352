"""The service: wires the layers, runs the threads, and starts, reloads, drains and stops in order.

Who owns what: each folder's intake thread owns its watch, scans and settler; the ledger owns every delivery;
`Gates` own the pauses; the main thread owns the phase, the signals and everything below in `Service`.
"""

import faulthandler
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import urlsplit

import structlog

from pmwatch import __version__, systemd
from pmwatch.answers import Answers
from pmwatch.audit import Account, audit
from pmwatch.config import Settings, is_loopback
from pmwatch.delivery.disposals import Disposals
from pmwatch.delivery.gates import Gates
from pmwatch.delivery.limits import Limits, Most
from pmwatch.delivery.pace import Pace
from pmwatch.delivery.remote import ProcessMindRemote, Remote
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.delivery.rows import RowCounts
from pmwatch.delivery.worker import Report, Uploader
from pmwatch.errors import ConfigError, DestinationUnknown, ExitCode, Interrupted, LedgerError, PmwatchError
from pmwatch.explain import freeing, history
from pmwatch.intake.evidence import quietens_leases
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.rules import Rules
from pmwatch.intake.watch import Watcher
from pmwatch.ledger import VERSION as LEDGER_VERSION
from pmwatch.ledger import Ledger, StateLock
from pmwatch.log import register_secret
from pmwatch.metrics import Metrics
from pmwatch.model import (
    BY_HAND,
    PENDING,
    Folder,
    Order,
    State,
    Target,
    display,
)
from pmwatch.processmind import Http, Storage, Timeouts, open_http
from pmwatch.processmind.keys import KeyRing
from pmwatch.reporting import Reporter
from pmwatch.retention import clear_archive, forget
from pmwatch.threads import Mailbox, Pulse, ThreadGroup, Wakeup
from pmwatch.timetable import Bandwidth
from pmwatch.web.app import Questions, create_app
from pmwatch.web.server import WebServer

_MOST_FILES: Final = 65536
_TICK_SECONDS: Final = 0.5
_QUICK_TICK_SECONDS: Final = 0.05
_LONGEST_WAY_SECONDS: Final = 0.1  # that a scan gives way to uploads at a time
_ABORT_SECONDS: Final = 3.0
_LAST_ROWS_SECONDS: Final = 5.0  # how long the rows of a finished job may take to be told
_RESOLVE_SECONDS: Final = 15.0
_AUDIT_SECONDS: Final = 900.0
_SECOND_LOOK_SECONDS: Final = 30.0
_CARE_SECONDS: Final = 3600.0
_BLOCKED_CHECK_SECONDS: Final = 60.0
_BLOCKED_SECONDS: Final = 900.0
_SAY_AGAIN_SECONDS: Final = 86400.0
_NOT_LOOKED: Final = "pmwatch was stopped before its scan had ended: files may be left. Run it again."
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Mode(Enum):
    """How long the service runs: until told to stop, until told and drained, or until all there is has gone."""

    FOREVER = "forever"
    DRAIN = "drain"
    ONCE = "once"


class Phase(Enum):
    """What the service is doing."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class _Died:
    thread: str
    error: BaseException


@dataclass(slots=True)
class _Running:
    """One folder's intake and the event that stops its thread."""

    intake: FolderIntake
    stop: threading.Event


RemoteFactory = Callable[[Settings, Http, KeyRing], Remote]


def processmind_remote(settings: Settings, http: Http, keys: KeyRing) -> Remote:
    """Return the real remote end. Loopback storage is allowed only where the API itself is on this machine."""
    base_url = settings.api.base_url
    host = urlsplit(base_url).hostname or ""
    storage = Storage(http, allowed_hosts=settings.api.allowed_upload_hosts, allow_loopback=is_loopback(host))
    tenants = {tenant.name: tenant for tenant in settings.tenants}
    return ProcessMindRemote(http=http, storage=storage, base_url=base_url, tenants=tenants, keys=keys)


class Service:
    """The daemon. `run` returns the exit code; `reload` returns the new settings or raises ConfigError."""

    def __init__(
        self,
        settings: Settings,
        *,
        mode: Mode = Mode.FOREVER,
        reload: Callable[[], Settings] | None = None,
        remote_factory: RemoteFactory = processmind_remote,
        on_report: Callable[[Report], None] = lambda _: None,
        on_ready: Callable[["Service"], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._mode = mode
        self._reload = reload
        self._remote_factory = remote_factory
        self._on_ready = on_ready
        self._log = structlog.get_logger()
        self._phase = Phase.STARTING
        self._mailbox = Mailbox()
        self._work = Wakeup()
        self._names = Wakeup()  # for the thread that resolves them
        self._pulse = Pulse()
        self._threads = ThreadGroup(died=lambda name, error: self._mailbox.put(_Died(name, error)))
        self._no_more_claims = threading.Event()
        self._abort = threading.Event()
        self._intakes: dict[str, _Running] = {}
        self._unresolved: dict[Target, PmwatchError] = {}
        self._with_files: set[Target] = set()  # of those that were not resolved when last looked at
        self._unchecked: set[Target] = set()
        self._unaccounted: dict[str, int] = {}
        self._intakes_started = 0
        self._died = False
        self._drain_until = 0.0
        self._stop_skips_grace = False
        self._web: WebServer | None = None
        self.metrics = Metrics(version=__version__)
        self._reporter = Reporter(self.metrics, settled=self._work.wake_some, wake=self._wake_all, on_report=on_report)
        self._started_at = time.time()

    # ---- life -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until stopped. Raises PmwatchError where it cannot start."""
        self._mailbox.receive(*_SIGNALS)
        faulthandler.register(signal.SIGUSR1)  # prints what every thread is doing, for a bug report
        quietens_leases()
        _raise_file_limit()
        lock = self._lock_state()
        try:
            self._open(lock)
            self._start()
            self._loop()
            return self._stop()
        finally:
            lock.release()

    def stop(self) -> None:
        """Ask for a stop, as SIGTERM does; callable from any thread."""
        self._mailbox.put(signal.SIGTERM)

    def reload(self) -> None:
        """Ask for the configuration to be read again, as SIGHUP does; callable from any thread."""
        self._mailbox.put(signal.SIGHUP)

    def _lock_state(self) -> StateLock:
        directory = self._settings.state.dir
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            lock = StateLock(directory)
            lock.acquire()
        except OSError as error:
            raise LedgerError(
                f"[state] dir {directory} cannot be used: {error.strerror}",
                hint="Create it and make pmwatch's user its owner, or set [state] dir or --state-dir to another place.",
            ) from None
        return lock

    def _open(self, lock: StateLock) -> None:
        settings = self._settings
        if settings.listen is not None:
            host, port = settings.listen
            self._web = WebServer(host=host, port=port)
            lock.publish(http=self._web.address)
        self.ledger = Ledger.open(settings.state.dir)
        self.ledger.check()
        if 0 < self.ledger.version_found < LEDGER_VERSION:
            self._log.info("ledger upgraded", from_version=self.ledger.version_found, to_version=LEDGER_VERSION)
        recovered = self.ledger.recover(blocking={folder.name for folder in settings.folders if folder.blocks})
        self._tidy()
        self.ledger.forget_destinations()
        if recovered:
            self._log.warning("recovered", deliveries=recovered, why="the process before this one ended in the middle")
        register_secret(urlsplit(settings.api.proxy.get_secret_value()).password or "")
        timeouts = Timeouts(settings.api.connect_timeout, settings.api.timeout, settings.api.stall_timeout)
        self.http = _http(settings, timeouts)
        self.watcher = Watcher()
        self.gates = Gates(
            self._policy(longest=60.0), now=time.time, monotonic=time.monotonic, changed=self._reporter.gate_changed
        )
        self.limits = Limits(changed=self._reporter.share_changed)
        self.pace = Pace()
        self.disposals = Disposals()
        self.rows = RowCounts(ledger=self.ledger, gates=self.gates, limits=self.limits)
        self._apply(settings)
        self.answers = Answers(
            ledger=self.ledger,
            gates=self.gates,
            watcher=self.watcher,
            http=self.http,
            state_dir=settings.state.dir,
            intakes=lambda: [running.intake for running in list(self._intakes.values())],
            configured=lambda: self._folders,
            unresolved=lambda: self._unresolved,
            unaccounted=self._unaccounted,
            phase=lambda: self._phase.value,
            slowed=self.limits.slowed,
        )
        self.metrics.ask(self.answers.gauges)

    def _policy(self, *, longest: float | None = None) -> RetryPolicy:
        delivery = self._settings.delivery
        return RetryPolicy(delivery.retry_first, longest or delivery.retry_max, delivery.give_up_after)

    def _apply(self, settings: Settings) -> None:
        """Take over tenants and keys, and point waiting deliveries to where the configuration says.

        Raises LedgerError, and then nothing has changed.
        """
        folders = {folder.name: folder for folder in settings.folders}
        rules = {folder.name: Rules(folder) for folder in settings.folders if folder.levels}
        self.ledger.configure({name: _target_of(folder) for name, folder in folders.items()})
        self._settings, self._folders, self._rules = settings, folders, rules
        self.keys = KeyRing(settings.tenants, on_key=register_secret)
        self._remote = self._remote_factory(settings, self.http, self.keys)
        self._keep_gates()
        self.limits.most = Most(
            parallel=settings.delivery.max_parallel,
            for_tenant=settings.delivery.max_parallel_per_tenant,
            for_datatable=settings.delivery.max_parallel_per_datatable,
            requests={tenant.name: tenant.requests_per_second for tenant in settings.tenants},
        )
        self.pace.bandwidth = Bandwidth.parse(settings.delivery.bandwidth, settings.delivery.bandwidth_timetable)
        self.rows.after_seconds = settings.delivery.ask_rows_after
        self._unchecked = {folder.target for folder in settings.folders if not folder.levels}
        for folder in settings.folders:
            self.metrics.start_folder(folder.name)
        self.uploader = Uploader(
            ledger=self.ledger,
            remote=self._remote,
            gates=self.gates,
            folders=lambda: self._folders,
            policy=self._policy(),
            report=self._reported,
            look_again=self._look_again,
            started=self._reporter.put_started,
            abort=self._abort,
            beat=lambda: self._pulse.beat(threading.current_thread().name),
            share=self._settings.delivery.max_parallel,
            limits=self.limits,
            pace=self.pace,
            disposals=self.disposals,
            target_of=self._target_now,
        )

    def _target_now(self, folder: Folder, path: bytes) -> Target | None:
        """Return where a file goes by the configuration of this moment; None where it maps to nothing."""
        rules = self._rules.get(folder.name)
        return folder.target if rules is None else rules.map(path).target

    def _start(self) -> None:
        if self._web is not None:
            self._web.start(create_app(self._questions(), allowed_hosts=self._settings.http.allowed_hosts))
        for folder in self._settings.folders:
            self._start_intake(folder)
        self._threads.start("resolve", self._resolve_names)
        self._threads.start("audit", self._audit_now_and_then)
        self._threads.start("care", self._care_now_and_then)
        for number in range(1, self._settings.delivery.max_parallel + 1):
            self._threads.start(f"upload-{number}", self._upload)
        self._log.info(
            "started",
            version=__version__,
            folders=len(self._folders),
            listen=self._web.address if self._web else "off",
            state_dir=self._settings.state.dir,
        )
        self._say_what_is_held()

    def _loop(self) -> None:
        """Serve the mailbox until it is time to stop."""
        ping = systemd.watchdog_interval_seconds()
        next_ping = 0.0
        while self._phase is not Phase.STOPPING:
            waiting = self._phase in (Phase.STARTING, Phase.DRAINING)
            message = self._mailbox.take(_QUICK_TICK_SECONDS if waiting else _TICK_SECONDS)
            if message is not None:
                self._handle(message)
            self._settle_phase()
            self._watch_keys()
            now = time.monotonic()
            if ping is not None and now >= next_ping and not self._health():
                systemd.notify(WATCHDOG=1)
                next_ping = now + ping

    def _handle(self, message: object) -> None:
        if isinstance(message, _Died):
            self._log.error(
                "thread died",
                thread=message.thread,
                error=type(message.error).__name__,
                exc_info=message.error,
            )
            self._died = True
            self._phase = Phase.STOPPING
        elif message == signal.SIGHUP:
            self._reload_settings()
        elif self._mode is Mode.DRAIN and self._phase in (Phase.STARTING, Phase.RUNNING):
            self._begin_drain()  # its scan takes in what a first scan that is still to come would have found
        else:
            self._stop_skips_grace = self._phase is Phase.DRAINING and self._mode is Mode.DRAIN
            self._phase = Phase.STOPPING

    def _settle_phase(self) -> None:
        """Move on by itself: from starting to running, and from draining to stopping."""
        if self._phase is Phase.STARTING and not self._unready():
            self._phase = Phase.RUNNING
            systemd.notify(READY=1, STATUS=self.answers.summary())
            self._on_ready(self)
            self._log.info("ready", watching=self.watcher.count())
            if self._mode is Mode.ONCE:
                self._begin_drain()
        elif self._phase is Phase.RUNNING and systemd.is_listening():  # the summary asks the ledger
            systemd.notify(STATUS=self.answers.summary())
        if self._phase is Phase.DRAINING and (
            self._is_drained() or self._is_hopeless() or time.monotonic() >= self._drain_until
        ):
            self._phase = Phase.STOPPING

    # ---- drain and stop ---------------------------------------------------------------------------------------

    def _begin_drain(self) -> None:
        """One last scan of every folder, then settle and upload everything."""
        self._phase = Phase.DRAINING
        systemd.notify(STATUS="draining")
        self._drain_until = time.monotonic() + self._settings.delivery.drain_timeout
        self._log.info("draining", timeout_seconds=self._settings.delivery.drain_timeout)
        for running in self._intakes.values():
            running.intake.begin_last_scan()

    def _is_drained(self) -> bool:
        intakes = [running.intake for running in self._intakes.values()]
        if any(intake.reachable and not intake.idle for intake in intakes):
            return False
        return self.ledger.total(*PENDING) == 0

    def _is_hopeless(self) -> bool:
        """Tell whether all that is left waits for a datatable that does not exist: a job need not wait for it."""
        left = self.ledger.total(*PENDING)
        return self._mode is Mode.ONCE and left > 0 and left == self.ledger.count_unresolved(self._unresolved)

    def _stop(self) -> int:
        """Stop intake, claim nothing new, let running uploads finish within the grace, then abort them."""
        systemd.notify(STOPPING=1, STATUS="stopping")
        drained = self._phase_was_drained()
        for running in self._intakes.values():
            running.stop.set()
            running.intake.inbox.wake()
        self._no_more_claims.set()
        self._wake_all()
        self._log.info("stopping", running_uploads=len(self._reporter.active))
        grace = 0.0 if self._stop_skips_grace else self._settings.delivery.shutdown_grace
        self._wait_for_threads(grace)
        if drained:
            self._ask_rows_at_the_end()
        self._abort.set()
        left = self._threads.join(self._threads.names(), timeout=_ABORT_SECONDS)
        self._hand_back()
        code = self._exit_code(drained=drained)
        if self._web is not None:
            self._web.stop()
        self.watcher.close()
        self.http.close()
        if not left:
            self.ledger.close()
        self._log.info("stopped", exit_code=code, **({"still_running": left} if left else {}))
        return code

    def _phase_was_drained(self) -> bool:
        return self._mode is not Mode.FOREVER and self._is_drained()

    def _wait_for_threads(self, grace: float) -> None:
        """Wait for the threads to end, at most `grace` seconds, or until a second signal comes."""
        deadline = time.monotonic() + grace
        names = self._threads.names()
        while names and time.monotonic() < deadline:
            names = self._threads.join(names, timeout=0.1)
            message = self._mailbox.take(0)
            if message in (signal.SIGTERM, signal.SIGINT):
                self._log.warning("second signal: not waiting for running uploads")
                return
            if not self._late():
                systemd.notify(WATCHDOG=1)

    def _ask_rows_at_the_end(self) -> None:
        """Ask at once for the rows of what was uploaded, for a few seconds: a job that has ended asks nothing later."""

        def ask() -> None:
            try:
                self.rows.ask(self._remote, lambda: _go_on_until(self._abort), at_once=True)
            except LedgerError as error:
                self._ledger_trouble(error, thread="rows")

        self._threads.start("rows", ask)
        self._wait_for_threads(_LAST_ROWS_SECONDS)

    def _hand_back(self) -> None:
        """Queue again what threads that did not stop in time still hold; what killed one is left to `recover`."""
        if self._died:
            return
        try:
            self.ledger.hand_back()
        except LedgerError as error:
            self._ledger_trouble(error, thread="main")

    def _exit_code(self, *, drained: bool) -> int:
        if self._died:
            return ExitCode.FAILURE
        if self._mode is Mode.FOREVER:
            return ExitCode.OK
        left = [one for one in self.ledger.list(states=PENDING, limit=100) if one.folder != BY_HAND]
        down = [running.intake.folder.name for running in self._intakes.values() if not running.intake.reachable]
        settling = [display(c.path) for running in self._intakes.values() for c in running.intake.unsettled()]
        for delivery in left:
            self._log.error(
                "left behind",
                folder=delivery.folder,
                path=delivery.display_path,
                state=str(delivery.state),
                reason=delivery.reason,
                detail=delivery.detail or self.answers.trouble_of(delivery.target),
            )
        for path in settling:
            self._log.error("left behind", path=path, state="settling")
        for name in down:
            self._log.error("folder could not be read", folder=name)
        for running in self._intakes.values():
            if running.intake.reachable and not running.intake.scanned:
                self._log.error("folder was not looked through", folder=running.intake.folder.name, hint=_NOT_LOOKED)
        return ExitCode.OK if drained and not down and not self._reporter.failed else ExitCode.FAILURE

    # ---- reload -----------------------------------------------------------------------------------------------

    def _reload_settings(self) -> None:
        """Read the configuration again: one that is bad, or that the ledger cannot take, is refused."""
        if self._reload is None:
            return
        try:
            settings = self._reload()
        except ConfigError as error:
            self._log.error("reload refused", problems=error.problems, hint="The old configuration stays in force.")
            return
        before, old = dict(self._folders), self._settings
        try:
            self._apply(settings)
        except LedgerError as error:
            hint = f"The old configuration stays in force; reload once more later. {error.hint}"
            self._log.error("reload refused", error=error.message, hint=hint)
            return
        self._say_what_needs_a_restart(old, settings)
        removed = [name for name in before if name not in self._folders]
        restarted = [name for name, folder in self._folders.items() if before.get(name, folder) != folder]
        for name in removed + restarted:
            self._stop_intake(name)
        for name, folder in self._folders.items():
            if name not in self._intakes:
                self._start_intake(folder)
        for tenant in settings.tenants:
            self.gates.try_now(tenant.name)
        self._wake_all()
        added = [name for name in self._folders if name not in before]
        self._log.info("reloaded", folders=len(self._folders), added=added, removed=removed, restarted=restarted)
        try:
            self.ledger.adopt(self._folders)  # what an intake entered until it stopped
            self._say_what_is_held()
        except LedgerError as error:
            self._ledger_trouble(error, thread="main")

    def _say_what_needs_a_restart(self, old: Settings, settings: Settings) -> None:
        fixed = [name for name in ("http", "api", "log") if getattr(settings, name) != getattr(old, name)]
        hint, used = {}, self.ledger.state_dir
        if os.path.normpath(settings.state.dir) != os.path.normpath(used):
            fixed.append("state.dir")
            hint["hint"] = (
                f"pmwatch stays in {used} until then, but its commands look into {settings.state.dir} now: "
                f"give them --state-dir {used}."
            )
        if settings.delivery.max_parallel != old.delivery.max_parallel:
            fixed.append("delivery.max_parallel")
        if fixed:
            self._log.warning("restart needed", sections=fixed, why="these take effect only at start", **hint)

    def _say_what_is_held(self) -> None:
        """Log how many files wait for folders that the configuration does not have any more."""
        for name in sorted({folder for folder, _ in self.ledger.counts()} - set(self._folders)):
            if files := len(self.ledger.ids(State.HELD, folder=name, reason="folder_removed")):
                self._reporter.folder_removed(name, files)

    # ---- threads ----------------------------------------------------------------------------------------------

    def _ledger_trouble(self, error: LedgerError, **where: str) -> None:
        self._log.error("ledger trouble", **where, error=error.message, hint=error.hint)

    def _wake_all(self) -> None:
        self._work.wake()
        self._names.wake()

    def _start_intake(self, folder: Folder) -> None:
        self._intakes_started += 1
        thread = f"intake-{folder.name}-{self._intakes_started}"
        stop = threading.Event()
        intake = FolderIntake(
            folder,
            watcher=self.watcher,
            ledger=self.ledger,
            observer=self._reporter,
            beat=lambda: self._pulse.beat(thread),
            give_way=self._give_way,
        )
        self._intakes[folder.name] = _Running(intake, stop)

        def work() -> None:
            while not stop.is_set():
                self._pulse.beat(thread)
                try:
                    intake.turn()
                except LedgerError as error:
                    self._ledger_trouble(error, folder=folder.name)
                    stop.wait(_TICK_SECONDS)
            intake.close()
            self._pulse.forget(thread)

        self._threads.start(thread, work)

    def _give_way(self, seconds: float) -> None:
        """Let the uploads have the interpreter for as long as a scan had it."""
        if self.limits.busy:
            self._no_more_claims.wait(min(seconds, _LONGEST_WAY_SECONDS))

    def _stop_intake(self, name: str) -> None:
        running = self._intakes.pop(name)
        running.stop.set()
        running.intake.inbox.wake()
        self._threads.join(self._threads.names(f"intake-{name}-"), timeout=_ABORT_SECONDS)

    def _upload(self) -> None:
        thread = threading.current_thread().name
        told = -1  # the ticket at which the resolving thread was last woken
        while not self._no_more_claims.is_set():
            self._pulse.beat(thread)
            ticket = self._work.ticket
            try:
                worked = self.uploader.run_one()
            except LedgerError as error:
                self._ledger_trouble(error, thread=thread)
                self._no_more_claims.wait(_TICK_SECONDS)
                continue
            if not worked:
                if ticket != told:
                    self._names.wake()  # what came since may have no ids yet
                    told = ticket
                self._work.wait(ticket, self._seconds_to_next())
        if not self._abort.is_set():
            with suppress(LedgerError):  # the next start does it
                self.uploader.dispose_waiting()
        self._pulse.forget(thread)

    def _seconds_to_next(self) -> float:
        """Return how long an idle uploader may sleep: until a retry or a gate is due, at most a second."""
        now = time.time()
        due = self.ledger.next_due(now=now)
        waits = [1.0, self.gates.seconds_to_opening(), None if due is None else due - now]
        return min(max(0.01, wait) for wait in waits if wait is not None)

    def _resolve_names(self) -> None:
        next_try = 0.0
        while not self._no_more_claims.is_set():
            self._pulse.beat("resolve")
            ticket = self._names.ticket
            try:
                next_try = self._resolve_once(next_try)
                self.rows.ask(self._remote, self._check_resolving)
            except LedgerError as error:
                self._ledger_trouble(error, thread="resolve")
            self._names.wait(ticket, 1.0)
        self._pulse.forget("resolve")

    def _check_resolving(self) -> None:
        self._pulse.beat("resolve")
        _go_on_until(self._no_more_claims)

    def _reported(self, report: Report) -> None:
        self._reporter.reported(report)
        if report.what == "uploaded":
            self.rows.arrived(report.delivery)

    def _resolve_once(self, next_try: float) -> float:
        """Resolve what is new at once, and what failed before every few seconds.

        What the configuration names is resolved without waiting for a file, so that a mistake shows at start.
        """
        with_files = set(self.ledger.unresolved())
        waiting = with_files | self._unchecked
        news = (waiting - set(self._unresolved)) | (with_files - self._with_files)  # a first file may create it
        self._with_files = with_files
        now = time.monotonic()
        if not news and (now < next_try or not waiting):
            self._unresolved = {target: error for target, error in self._unresolved.items() if target in waiting}
            return next_try
        fared = self.uploader.resolve_names(
            waiting, may_create=lambda target: target in with_files and self._may_create(target)
        )
        troubles = {target: error for target, error in fared.items() if error is not None}
        for target in [one for one in troubles if one not in with_files and self._is_to_come(one, troubles[one])]:
            del troubles[target]  # no trouble, and asked for again with its first file
            self._log.info("destination will be created with its first file", target=str(target))
        self._unchecked -= fared.keys() - troubles.keys()
        for target, error in troubles.items():
            if target not in self._unresolved:
                self._log.error("destination unknown", target=str(target), error=error.message, hint=error.hint)
        self._unresolved = troubles
        if fared:
            self._work.wake()
        return now + _RESOLVE_SECONDS

    def _is_to_come(self, target: Target, error: PmwatchError) -> bool:
        return isinstance(error, DestinationUnknown) and self._may_create(target)

    def _may_create(self, target: Target) -> bool:
        """Tell whether a folder whose files go to this target wants what is missing to be created."""
        wanting = [folder for folder in self._folders.values() if folder.create_missing]
        return any(
            folder.target == target or (folder.levels and target.tenant in {folder.target.tenant, *folder.tenants})
            for folder in wanting
        )

    def _audit_now_and_then(self) -> None:
        """Account for every file, well after start and then at long intervals."""
        while not self._no_more_claims.wait(_AUDIT_SECONDS):
            for running in list(self._intakes.values()):
                try:
                    self._audit(running.intake)
                except LedgerError as error:
                    self._ledger_trouble(error, thread="audit")

    def _care_now_and_then(self) -> None:
        """Every minute tidy up and say what is blocked for long, every hour clear archives and forget what is old."""
        next_clearing = time.monotonic() + _CARE_SECONDS
        said: dict[int, float] = {}
        while not self._no_more_claims.wait(_BLOCKED_CHECK_SECONDS):
            self._keep_gates()
            try:
                self._tidy()
                said = self._say_what_is_blocked(said, now=time.time())
                if time.monotonic() >= next_clearing:
                    next_clearing = time.monotonic() + _CARE_SECONDS
                    self._clear(now=time.time())
            except LedgerError as error:
                self._ledger_trouble(error, thread="care")

    def _keep_gates(self) -> None:
        self.gates.keep({tenant.name for tenant in self._settings.tenants})

    def _tidy(self) -> None:
        self.ledger.drop_left_by_hand()
        if brought := self.ledger.bring_near(now=time.time(), longest=self._settings.delivery.retry_max):
            self._log.warning("waits cut short", deliveries=brought, why="the clock was set back")

    def _say_what_is_blocked(self, said: dict[int, float], *, now: float) -> dict[int, float]:
        """Log each file behind which others wait for long, once a day; return which were told of, and when."""
        told = {}
        for blocker in self.ledger.blockers():
            one = blocker.delivery
            since = one.first_failed_at or one.finished_at
            if now - since < _BLOCKED_SECONDS:
                continue
            told[one.id] = said.get(one.id, 0.0)
            if now - told[one.id] < _SAY_AGAIN_SECONDS:
                continue
            told[one.id] = now
            self._log.warning(
                "files are blocked",
                folder=one.folder,
                blocker=one.id,
                path=one.display_path,
                state=str(one.state),
                reason=one.reason,
                detail=one.detail,
                for_seconds=round(now - since),
                waiting=sum(blocker.waiting.values()),
                hint=freeing(one),
            )
        return told

    def _clear(self, *, now: float) -> None:
        """Remove archived files and rows of the ledger whose time is over."""

        def go_on() -> bool:
            return not self._no_more_claims.is_set()

        for folder in list(self._folders.values()):
            try:
                removed, changed = clear_archive(self.ledger, folder, now=now, go_on=go_on)
            except OSError as error:
                self._log.warning("archive not cleared", folder=folder.name, error=error.strerror)
                continue
            if removed or changed:
                self._log.info("archive cleared", folder=folder.name, removed=removed, left_because_changed=changed)
        keep = self._settings.state.keep
        if keep and (forgotten := forget(self.ledger, self._folders, before=now - keep, go_on=go_on)):
            self._log.info("ledger cleared", forgotten=forgotten)

    def _audit(self, intake: FolderIntake) -> None:
        """Audit one folder. What has no account twice, with a scan in between, is reported."""
        name = intake.folder.name

        def take() -> Account:
            return audit(
                intake.folder,
                self.ledger,
                unentered=lambda path, _seen: "settling" if intake.accounts_for(path) else "",
            )

        account = take()
        if account.unaccounted:
            intake.inbox.rescan()
            self._no_more_claims.wait(_SECOND_LOOK_SECONDS)
            account = take()
        self._unaccounted[name] = account.unaccounted
        if account.unaccounted:
            self._log.error(
                "unaccounted files",
                folder=name,
                files=account.unaccounted,
                first=account.named,
                hint="pmwatch why FILE tells what is known of one; please report this.",
            )

    def _watch_keys(self) -> None:
        """Let a tenant's gate be probed at once when its key file was replaced."""
        for gate in self.gates.all():
            if gate.is_open or gate.name not in {tenant.name for tenant in self._settings.tenants}:
                continue
            if gate.reason in ("key_rejected", "key_unavailable") and self.keys.changed(gate.name):
                self.gates.try_now(gate.name)
                self._wake_all()

    # ---- what the layers below tell -----------------------------------------------------------------------------

    def _look_again(self, folder: str, path: bytes) -> None:
        running = self._intakes.get(folder)
        if running is not None:
            running.intake.inbox.put(path)

    # ---- questions ------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The address of the status page and the metrics, or an empty string."""
        return self._web.address if self._web else ""

    def _questions(self) -> Questions:
        """Return what the web layer may ask."""
        return Questions(
            metrics=self.metrics.render,
            health=self._health,
            ready=self._unready,
            status=self.answers.status,
            why=self.answers.why,
            unsettled=self.answers.unsettled,
            history=lambda asked: history(self.ledger, asked, now=time.time()),
        )

    def _late(self) -> list[str]:
        limit = max(60.0, 2 * self._settings.api.stall_timeout + self._settings.api.timeout)
        return self._pulse.late(limit)

    def _health(self) -> list[str]:
        """Return what is wrong with the process itself: threads that make no turns."""
        wrong = [_late_thread(name) for name in self._late()]
        if self._web is not None and self._phase is Phase.RUNNING and not self._web.alive:
            wrong.append("the web server ended")
        return wrong

    def _unready(self) -> list[str]:
        """Return what is not ready yet: folders whose watch was not tried."""
        return [f"folder {name} is not watched yet" for name, r in list(self._intakes.items()) if not r.intake.ready]


def _late_thread(name: str) -> str:
    if name.startswith("intake-"):
        folder = name.removeprefix("intake-").rpartition("-")[0]
        return f"folder {folder} hangs: does the file system that it lies on answer?"
    return f"thread {name} makes no turns"


def _http(settings: Settings, timeouts: Timeouts) -> Http:
    api = settings.api
    return open_http(
        timeouts,
        ca_file=api.ca_file,
        client_cert_file=api.client_cert_file,
        client_key_file=api.client_key_file,
        proxy=api.proxy.get_secret_value(),
    )


def _go_on_until(stop: threading.Event) -> None:
    """Raise Interrupted once the event is set."""
    if stop.is_set():
        raise Interrupted("pmwatch is shutting down")


def _target_of(folder: Folder) -> Callable[[bytes], tuple[Target, Order] | None]:
    rules = Rules(folder)

    def target_of(path: bytes) -> tuple[Target, Order] | None:
        target = rules.map(path).target
        return None if target is None else (target, folder.order)

    return target_of


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: a run of small files holds one for each of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
