//! The life of COMMAND: started under cover, passed its signals, ended with all that it left.

use std::io::IsTerminal;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::handler::hidden;
use super::signals::Signals;
use super::start::Started;
use super::{AppError, GRACE, system};
use crate::cli::{self, Exit};
use crate::workloads::cgroup::Cgroup;
use crate::workloads::command::{Launch, LaunchError, Launched, RunAs};

/// Runs COMMAND to its end; terminates (or, with `--wait`, waits for) what it leaves behind.
pub(super) async fn supervise(
    args: &cli::Run,
    started: &Started,
    workload: &Cgroup,
    descriptors: Option<(u64, u64)>,
    signals: &mut Signals,
) -> Result<Exit, AppError> {
    let launch = Launch {
        argv: args.command.clone(),
        cgroup: workload,
        netns: Some(
            started.netns.try_clone_fd().map_err(system("cannot hold the network namespace"))?,
        ),
        etc_netns: started.etc_netns.clone(),
        run_as: RunAs::from_env(|name| std::env::var_os(name)).map_err(AppError::from)?,
        keep_caps: args.keep_caps,
        files: started.files.clone(),
        also_keep: &[],
        hide: hidden(),
        descriptors,
    };
    let mut command = launch.spawn().map_err(AppError::from)?;
    let exit = wait_for(&mut command, workload, signals).await?;
    if args.wait {
        tokio::select! {
            () = emptied(workload) => {}
            _ = signals.next() => {}
        }
    }
    workload.terminate(GRACE).await?;
    Ok(exit)
}

/// Passes signals on. After SIGTERM, SIGHUP or a SIGINT that the terminal did not send to COMMAND
/// itself, it has [`GRACE`] to end.
async fn wait_for(
    command: &mut Launched,
    workload: &Cgroup,
    signals: &mut Signals,
) -> Result<Exit, AppError> {
    loop {
        tokio::select! {
            exit = command.wait() => return exit.map_err(waiting),
            signal = signals.next() => {
                let from_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
                    && std::io::stdin().is_terminal();
                if from_terminal {
                    continue;
                }
                command.signal(signal);
                if let Ok(exit) = tokio::time::timeout(GRACE, command.wait()).await {
                    return exit.map_err(waiting);
                }
                workload.terminate(Duration::ZERO).await?;
            }
        }
    }
}

fn waiting(source: std::io::Error) -> AppError {
    AppError::Launch(LaunchError::Prepare { what: "wait for it".into(), source })
}

async fn emptied(cgroup: &Cgroup) {
    while cgroup.is_populated().unwrap_or(false) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
