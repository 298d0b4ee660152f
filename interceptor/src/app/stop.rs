//! The end of a daemon: everything is taken away, or left to the daemon that takes its place.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::begin::Begun;
use super::handler::Successor;
use super::signals::Signals;
use super::start::Started;
use super::{AppError, GRACE};
use crate::admit::Rooms;
use crate::policy::Enforcement;
use crate::workloads::session::Session;

/// How long open connections may finish after the hooks are gone.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the last records of a command that ended may take.
const SETTLE: Duration = Duration::from_secs(1);

/// How long connections that are cut may take to write their lines.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Started {
    /// Takes everything away. A command's own connections end with it, so their records are waited
    /// for before the hooks go; connections of cgroups that live on are drained after.
    pub(super) async fn stop(self, session: &Session, drain: bool) -> Result<(), AppError> {
        let begun = self.begun;
        begun.admin.abort();
        self.reloader.abort();
        begun.watchdog.iter().for_each(JoinHandle::abort);
        session.workload().terminate(GRACE).await?;
        if !drain {
            settled(&begun.running.rooms, SETTLE).await;
        }
        let detached = begun.running.kernel.detach();
        if drain {
            settled(&begun.running.rooms, DRAIN).await;
        }
        begun.finish().await;
        if let Some(isolated) = self.isolated {
            isolated.remove().await?;
        }
        Ok(detached?)
    }
}

impl Begun {
    /// Gives everything to the daemon that has asked for it: what is attached and pinned, the
    /// listeners with whoever waits in them, the control socket, the kernel's reports. Then drains, for
    /// `at_most`: SIGTERM does not hurry it, since whoever replaces daemons sends it when the new one
    /// is ready; the other signals do. `tasks` are those that change what is handed over. Gives whether a
    /// signal came.
    pub(super) async fn hand_over(
        self,
        tasks: impl IntoIterator<Item = JoinHandle<()>>,
        successor: Successor,
        at_most: Duration,
        signals: &mut Signals,
    ) -> bool {
        let Self { running, admin, reporter, watchdog, background, stop_reporter, .. } = self;
        // Nothing is written in the kernel from here on.
        running.kernel.leave();
        let all = running.covered.all();
        for tenant in running.covered.tenants() {
            tenant.sync.leave();
        }
        let own = [admin].into_iter().chain(watchdog).chain(background);
        for task in tasks.into_iter().chain(own) {
            task.abort();
            // Cancelled, as it was asked.
            let _ = task.await;
        }
        for covered in all.values() {
            covered.stop_following().await;
        }
        let _ = stop_reporter.send(());
        let _ = reporter.await;
        // Last, since from here on connections wait.
        for covered in all.values() {
            covered.doors.shut().await;
        }
        let _ = successor.send(());
        let open = || running.rooms.active();
        eprintln!(
            "interceptor: another one has taken over; {} connections have {} s to end",
            open(),
            at_most.as_secs()
        );
        running.drainer.begin();
        let ended = until(|| open() == 0, at_most);
        let mut told = false;
        tokio::select! {
            () = ended => {}
            () = hurried(signals, &mut told) => {}
        }
        let cut = open();
        running.drainer.end();
        until(|| open() == 0, LAST_LINES).await;
        if cut > 0 {
            eprintln!("interceptor: {cut} connections did not end by themselves and are cut");
        }
        let strict = running.policy.current().enforcement == Enforcement::Strict;
        running.folds.unfold(strict, true);
        running.log.flush().await;
        told
    }

    /// Writes the last lines. What is attached and pinned stays as it is.
    pub(super) async fn finish(self) {
        let _ = self.stop_reporter.send(());
        let _ = self.reporter.await;
        self.background.iter().for_each(JoinHandle::abort);
        self.running.log.flush().await;
    }
}

/// Waits until no connection is open and none came in for a moment: what the workload's last breath left
/// in the accept queues has its record too.
async fn settled(counts: &Rooms, at_most: Duration) {
    const QUIET: u32 = 8;
    let until = Instant::now() + at_most;
    let (mut quiet, mut total) = (0, counts.total());
    while quiet < QUIET && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let idle = counts.active() == 0 && counts.total() == total;
        total = counts.total();
        quiet = if idle { quiet + 1 } else { 0 };
    }
}

/// Returns when `done` says so, or after `at_most`.
async fn until(done: impl Fn() -> bool, at_most: Duration) {
    let until = Instant::now() + at_most;
    while !done() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns when somebody does not want to wait. `told`: a signal came.
async fn hurried(signals: &mut Signals, told: &mut bool) {
    loop {
        let signal = signals.next().await;
        *told = true;
        if signal != Signal::SIGTERM {
            return;
        }
    }
}
