//! The control socket: what is attached, what is in the tables, and changing it while it runs.
//!
//! One JSON line asks, one JSON line answers. The socket is for root on this machine only (T-58):
//! directory 0700, socket 0600, and the peer's uid is checked; covered commands find the directory
//! empty (T-12).

pub mod client;
pub mod exec;
pub mod http;
pub mod metrics;
mod passing;
pub mod ready;
pub mod report;
pub mod server;
pub mod succession;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cli::Exit;
pub use report::StatusReport;
pub use server::Server;
pub use succession::{HandedOver, Offer, OfferedNamespace, Predecessor};

/// The directory of the control sockets.
pub const DIR: &str = "/run/interceptor";

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// The socket of interceptor `name`.
pub fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.sock"))
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is attached, in the tables and counted.
    Status {},
    /// Let a network connect directly.
    BypassAdd {
        /// As [`crate::cli::parse_cidr`] reads it.
        cidr: String,
    },
    /// Intercept it again.
    BypassDel {
        /// As [`crate::cli::parse_cidr`] reads it.
        cidr: String,
    },
    /// The networks that connect directly.
    BypassList {},
    /// Where a further command is to be put.
    ExecInfo {},
    /// Whether a pod's network namespace is covered: see [`crate::cni`].
    Cover(Sandbox),
    /// Give another daemon your place: see [`succession`].
    TakeOver {
        /// The asking one's form of the kernel's tables, [`interceptor_common::VERSION`].
        contract: u32,
    },
    /// Lay everything down now. Only after `take_over`, on the same connection.
    Go {},
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `status`.
    Status(Box<StatusReport>),
    /// To `bypass_list`.
    Bypass(Vec<String>),
    /// To `exec_info`.
    Exec(ExecInfo),
    /// To `cover`.
    Cover(Covering),
    /// To `take_over`; the descriptors come behind it.
    Offer(Offer),
    /// It is done.
    Done,
    /// It is not done: why.
    Error(String),
}

/// Where `interceptor exec` puts a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// The workload's cgroup directory.
    pub cgroup: PathBuf,
    /// The network namespace's file; the client's own if absent.
    pub netns: Option<PathBuf>,
    /// The namespace's name, for /etc/netns/NAME.
    pub etc_netns: Option<String>,
    /// Files that lie over others.
    #[serde(default)]
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Directories that the command must find empty.
    pub hide: Vec<PathBuf>,
}

/// A pod's network namespace, as the container runtime has just made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// Its file, as the runtime calls it.
    pub netns: PathBuf,
    /// The kernel's number for it.
    pub cookie: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime says it.
    pub uid: Option<String>,
}

impl Sandbox {
    /// What an interceptor says that is no agent.
    pub fn covered_by_no_agent(&self) -> String {
        let Self { namespace, name, .. } = self;
        format!("pod {namespace}/{name}: this interceptor covers no pods; `interceptor agent` does")
    }
}

/// What is with a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Covering {
    /// The pod is not to be covered.
    Exempt,
    /// It is covered: the hooks are attached, its listeners exist, its policy is compiled.
    Covered,
    /// It will be: what it waits for.
    NotYet(String),
}

/// What the daemon can be asked. Called on a thread that may block.
pub trait Handler: Send + Sync + 'static {
    /// What is attached, in the tables and counted.
    fn status(&self) -> StatusReport;
    /// Let `net` connect directly from the next connect on.
    ///
    /// # Errors
    /// The table is full, or the network is in it already: in words for the user.
    fn bypass_add(&self, net: IpNet) -> Result<(), String>;
    /// Intercept `net` again.
    ///
    /// # Errors
    /// It is not in the table: in words for the user.
    fn bypass_del(&self, net: IpNet) -> Result<(), String>;
    /// The networks that connect directly.
    fn bypass_list(&self) -> Vec<IpNet>;
    /// Where a further command is to be put.
    ///
    /// # Errors
    /// This interceptor covers no place for commands: in words for the user.
    fn exec_info(&self) -> Result<ExecInfo, String>;
    /// Covers a pod's network namespace, if the pod is to be covered, without waiting for anything:
    /// whoever asks will ask again.
    ///
    /// # Errors
    /// This interceptor covers no pods: in words for the user.
    fn cover(&self, sandbox: &Sandbox) -> Result<Covering, String> {
        Err(sandbox.covered_by_no_agent())
    }
    /// What another daemon needs to take this one's place, and the descriptors that it speaks of.
    ///
    /// # Errors
    /// This one cannot be replaced: in words for the user.
    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String>;
    /// Stop accepting, and writing anything in the kernel: another daemon does so when this returns.
    ///
    /// # Errors
    /// It was done already, for another one: in words for the user.
    fn lay_down(&self) -> Result<(), String>;
}

/// What can go wrong with the control socket.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody answers under this name.
    #[error(
        "no interceptor named {0} is running; start one with: interceptor run --name {0} -- COMMAND"
    )]
    NotRunning(String),
    /// Somebody answers already.
    #[error(
        "an interceptor named {0} is already running; --take-over takes its place, another --name runs \
         beside it"
    )]
    AlreadyRunning(String),
    /// The socket is root's.
    #[error("the control socket {} is for root only; use sudo", .0.display())]
    NotAllowed(PathBuf),
    /// The directory is not as it must be.
    #[error("{} must be a directory that belongs to root", .0.display())]
    Directory(PathBuf),
    /// It runs but does not answer in time.
    #[error("the interceptor named {0} does not answer; is it stopped, or at its limit?")]
    NoAnswer(String),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// The daemon and we don't understand each other.
    #[error("the interceptor's answer cannot be read (is it another version?): {0}")]
    Protocol(String),
    /// The system refused.
    #[error("control socket {}: {source}", .path.display())]
    Io {
        /// Socket or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl AdminError {
    /// The status that a process ends with because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) | Self::Refused(_) => Exit::Failure,
            Self::AlreadyRunning(_) | Self::Directory(_) => Exit::Busy,
            Self::NotAllowed(_) => Exit::Privilege,
            Self::Protocol(_) | Self::NoAnswer(_) => Exit::Internal,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Privilege
            }
            Self::Io { .. } => Exit::Internal,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
