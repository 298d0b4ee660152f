//! `interceptor selftest`: rooms and ways are `crate::selftest`'s; here are signals and output.

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::handler::hidden;
use super::{AppError, system};
use crate::cli::{Exit, Selftest};
use crate::selftest::{self, Options};

/// Tries everything and says how it went.
pub(super) async fn run(args: &Selftest) -> Result<Exit, AppError> {
    if args.list {
        list(args.only.as_deref());
        return Ok(Exit::Success);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::Root("making namespaces and loading BPF programs; use sudo"));
    }
    let options = Options { only: args.only.clone(), uid: args.uid, hide: hidden() };
    let listen = |kind| signal(kind).map_err(system("cannot listen for signals"));
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    // Dropped early, it takes everything away before this returns.
    let report = tokio::select! {
        report = selftest::run(&options) => report?,
        _ = interrupt.recv() => return Ok(Exit::Signal(Signal::SIGINT as i32)),
        _ = terminate.recv() => return Ok(Exit::Signal(Signal::SIGTERM as i32)),
    };
    if args.json {
        let text = serde_json::to_string_pretty(&report);
        println!("{}", text.map_err(|error| system("the report")(error.into()))?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.is_good() { Exit::Success } else { Exit::Failure })
}

fn list(only: Option<&str>) {
    for (kind, ways) in
        [("control", selftest::controls().collect::<Vec<_>>()), ("way", selftest::ways().collect())]
    {
        for way in ways.into_iter().filter(|way| selftest::is_meant(way, only)) {
            println!("{kind:<8} {:<24} T-{:<3} {}", way.id, way.threat, way.what);
        }
    }
}
