//! What a hook is attached to: a cgroup, or an interface.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_indextoname;

use super::hooks::Hook;
use super::{Plan, Side, sys};
use crate::netns::Gate;
use crate::workloads::cgroup::{Cgroup, CgroupError};

/// Where a program can be.
#[derive(Debug, Clone)]
pub enum Target {
    /// A control group.
    Cgroup(Cgroup),
    /// The daemon's end of a veth.
    Interface(Gate),
}

impl Target {
    /// Every target of a hook.
    pub(super) fn all(hook: &Hook, plan: &Plan<'_>) -> Vec<Self> {
        match hook.side {
            Side::Daemon => vec![Self::Cgroup(plan.daemon.clone())],
            Side::Workload => plan.workloads.iter().cloned().map(Self::Cgroup).collect(),
            Side::Interface => plan.gates.iter().cloned().map(Self::Interface).collect(),
        }
    }

    /// The kernel's number for it, of its kind.
    pub(super) fn id(&self) -> Result<u64, CgroupError> {
        match self {
            Self::Cgroup(cgroup) => cgroup.id(),
            Self::Interface(gate) => Ok(gate.index.into()),
        }
    }

    /// Whether it is an interface that is gone, and its links with it.
    pub(super) fn is_gone_interface(&self) -> bool {
        matches!(self, Self::Interface(gate) if if_indextoname(gate.index).is_err())
    }

    /// How people call it: a cgroup's path, or `interface NAME`.
    pub fn label(&self) -> String {
        match self {
            Self::Cgroup(cgroup) => cgroup.path().display().to_string(),
            Self::Interface(gate) => format!("interface {}", gate.name),
        }
    }

    pub(super) fn attach(&self, program: BorrowedFd<'_>, hook: &Hook) -> io::Result<OwnedFd> {
        match self {
            Self::Cgroup(cgroup) => {
                let cgroup = File::open(cgroup.path())?;
                sys::link_create(program, cgroup.as_fd(), hook.attach_type)
            }
            Self::Interface(gate) => sys::link_create_first(program, gate.index, hook.attach_type),
        }
    }
}
