//! `interceptor exec`: one more command under an interceptor that runs.

use std::fs::File;
use std::path::Path;

use super::{AdminError, client};
use crate::cli::{Exec, Exit};
use crate::workloads::cgroup::{CgroupError, Hierarchy};
use crate::workloads::command::{Launch, LaunchError, RunAs};

/// Why a command was not run under the interceptor.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The interceptor could not be asked.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Its cgroup is not there.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The command did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl ExecError {
    /// The status that a process ends with because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Admin(error) => error.exit(),
            Self::Cgroup(error) => error.exit(),
            Self::Launch(error) => error.exit(),
        }
    }
}

/// Runs the command in the place that the interceptor names, waits for it and gives its status.
///
/// # Errors
/// The interceptor does not run, or the command could not be started.
pub async fn run(exec: &Exec) -> Result<Exit, ExecError> {
    let info = client::exec_info(&exec.name)?;
    let cgroup = Hierarchy::discover()?.resolve(&info.cgroup)?;
    let netns = info.netns.as_deref().map(open_netns).transpose()?;
    let launch = Launch {
        argv: exec.command.clone(),
        cgroup: &cgroup,
        netns: netns.map(Into::into),
        etc_netns: info.etc_netns,
        run_as: RunAs::from_env(|name| std::env::var_os(name))?,
        keep_caps: exec.keep_caps,
        files: info.files,
        also_keep: &[],
        hide: info.hide,
        descriptors: None,
    };
    let waited = launch.spawn()?.wait_forwarding().await;
    Ok(waited.map_err(|source| LaunchError::Prepare { what: "wait for it".into(), source })?)
}

fn open_netns(path: &Path) -> Result<File, LaunchError> {
    File::open(path)
        .map_err(|source| LaunchError::Prepare { what: format!("open {}", path.display()), source })
}
