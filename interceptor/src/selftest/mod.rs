//! `interceptor selftest`: every way out that we know, tried from inside a covered room, and judged by
//! what arrives at canaries that are ours.
//!
//! Two rooms are the same but for the interceptor that covers one of them (`room.rs`, `cover.rs`). In
//! each mode every way (`way.rs`, and a file for each family) is tried in the bare room first: one that
//! does not arrive there shows nothing and is not applicable. Then it is tried in the covered one. The
//! verdict is that of the far side (`judge.rs`), never that of the call.

mod allowed;
mod borrowed;

mod cover;
mod doors;
mod hello;
mod http;
mod identity;
mod inside;
mod judge;
mod place;
mod raw;
mod report;
mod room;
mod servers;
mod sys;
mod talk;
mod tcp;
mod tls;
mod udp;
mod way;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use caps::Capability;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::task::JoinSet;

use self::cover::Cover;
use self::place::{Place, Results};
use crate::cli::Exit;
use crate::workloads::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::workloads::command::{LaunchError, RunAs};

pub use self::inside::{VERB, main as inside};
pub use self::report::{Finding, Mark, Report, Row};
pub use self::way::{Way, controls, ways};

/// What a container's root has beside what COMMAND's keeps.
const CONTAINER: &[Capability] = &[Capability::CAP_NET_RAW, Capability::CAP_MKNOD];

/// As whom, and with which capabilities, ways are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Root with a container's default capabilities, CAP_NET_RAW among them.
    Container = 1,
    /// Root with what `run -- COMMAND` leaves.
    Command = 2,
    /// An ordinary user, without any capability.
    User = 3,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Container, Self::Command, Self::User];

    /// Its name in tables and results.
    pub fn label(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Command => "command",
            Self::User => "user",
        }
    }

    fn run_as(self, uid: u32) -> RunAs {
        match self {
            Self::Container | Self::Command => RunAs::Root,
            Self::User => RunAs::Invoker { uid, gid: uid, user: None },
        }
    }

    fn also_keep(self) -> &'static [Capability] {
        match self {
            Self::Container => CONTAINER,
            Self::Command | Self::User => &[],
        }
    }
}

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only ways and controls whose id contains this, or whose threat is this (`T-17`).
    pub only: Option<String>,
    /// The ordinary user.
    pub uid: u32,
    /// Directories that the workload finds empty, as with `run -- COMMAND`.
    pub hide: Vec<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// `--only` fits nothing.
    #[error("no way and no control has {0:?} in its id or is of that threat; --list shows them")]
    NoMatch(String),
    /// A room could not be made.
    #[error("cannot make the room {name}: {source}")]
    Room {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The interceptor that is to be tested does not run as it should.
    #[error("the interceptor under test: {message}{}", .source.as_ref().map(ToString::to_string).unwrap_or_default())]
    Cover {
        /// What it said.
        message: String,
        /// What the system said.
        source: Option<io::Error>,
    },
    /// The capture could not keep up.
    #[error("the capture lost {0} packets, so it proves nothing; try again when less else runs")]
    Lost(u32),
    /// A process in a room did not do its part.
    #[error("a process in the room {room}: {source}")]
    Inside {
        /// Which room.
        room: String,
        /// What happened.
        source: io::Error,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A process could not be started in a room.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl SelftestError {
    /// The status that a process ends with because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoMatch(_) => Exit::Usage,
            Self::Cgroup(error) => error.exit(),
            Self::Launch(error) => error.exit(),
            Self::Room { .. } | Self::Cover { .. } | Self::Lost(_) | Self::Inside { .. } => {
                Exit::Internal
            }
        }
    }
}

/// Whether `--only` means this one.
pub fn is_meant(way: &Way, only: Option<&str>) -> bool {
    only.is_none_or(|only| {
        way.id.contains(only) || only.eq_ignore_ascii_case(&format!("T-{}", way.threat))
    })
}

/// Tries everything and judges it. Dropped early, it takes everything away as well.
///
/// # Errors
/// There is no result: a part of the test itself failed.
pub async fn run(options: &Options) -> Result<Report, SelftestError> {
    let started = Instant::now();
    let chosen: Vec<(u16, &Way)> =
        way::numbered().filter(|(_, way)| is_meant(way, options.only.as_deref())).collect();
    if chosen.is_empty() {
        return Err(SelftestError::NoMatch(options.only.clone().unwrap_or_default()));
    }
    let name = format!("selftest-{}", std::process::id());
    let prefix = format!("ix{:05x}", std::process::id() & 0xf_ffff);
    let home = Home::new()?;
    let mut bare = Place::new("bare", &home, &prefix, &chosen, options).await?;
    let mut covered = Place::new("covered", &home, &prefix, &chosen, options).await?;
    let cover = Cover::start(&covered.room, &name, home.files.path()).await?;
    covered.doors = cover.doors()?;
    let mut forwarder = JoinSet::new();
    let port = servers::gullible(&bare.room.near, &mut forwarder)
        .map_err(|source| SelftestError::Room { name: "bare".to_owned(), source })?;
    bare.doors = (port, port);

    let everything = |_: Mode, _: &Way| true;
    let in_bare = bare.try_in_all_modes(&chosen, &name, options, everything).await?;
    let got_out = |mode: Mode, way: &Way| {
        way::controls().any(|control| control.id == way.id)
            || in_bare.get(&(mode, way.id)).is_some_and(|(_, arrived)| *arrived)
    };
    let in_covered = covered.try_in_all_modes(&chosen, &name, options, got_out).await?;
    cover.stop()?;

    let rows = chosen.iter().map(|(_, way)| row(way, &in_bare, &in_covered)).collect();
    Ok(Report::new(rows, started.elapsed()))
}

fn row(way: &'static Way, bare: &Results, covered: &Results) -> Row {
    let control = way::controls().any(|control| control.id == way.id);
    let judged = |mode: Mode| {
        let key = (mode, way.id);
        let unbiased = bare.get(&key)?;
        if !control {
            return Some(report::judge(way, mode, unbiased, covered.get(&key)));
        }
        let mut without = report::judge_control(way, mode, unbiased);
        if without.mark.is_failure() {
            without.how = format!("without interceptor: {}", without.how);
            return Some(without);
        }
        covered.get(&key).map(|tried| report::judge_control(way, mode, tried))
    };
    let modes = Mode::ALL.into_iter().filter_map(judged).collect();
    Row { id: way.id, threat: way.threat, what: way.what, control, modes }
}

/// What goes away with the test: cgroups, and files.
struct Home {
    cgroup: Cgroup,
    files: TempDir,
}

impl Home {
    fn new() -> Result<Self, SelftestError> {
        use std::os::unix::fs::PermissionsExt;
        let readable = std::fs::Permissions::from_mode(0o755);
        let files = tempfile::Builder::new()
            .prefix("interceptor-selftest-")
            .permissions(readable)
            .tempdir()
            .map_err(|source| SelftestError::Room { name: "files".to_owned(), source })?;
        let cgroup = Hierarchy::discover()?
            .own()?
            .create(&format!("interceptor-selftest-rooms-{}", std::process::id()))?;
        Ok(Self { cgroup, files })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        room::kill_all(&self.cgroup);
        if let Err(error) = self.cgroup.remove() {
            eprintln!("interceptor: {error}");
        }
    }
}
