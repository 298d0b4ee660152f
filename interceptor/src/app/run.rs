//! `interceptor run`: put everything in place, wait, take everything away again. Or take the place of
//! a daemon that runs, and leave it to another one.

use std::path::Path;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::command::supervise;
use super::signals::Signals;
use super::start::{Started, Watched, start};
use super::wanted::{load_policy, sources};
use super::{AppError, system};
use crate::admin::{self, AdminError, HandedOver, Predecessor, Server};
use crate::cli::{self, Exit};
use crate::descriptors;
use crate::memory;
use crate::policy::Watch;
use crate::workloads::session::{Base, Session};

/// Runs until COMMAND ends, or until it is told to stop, or another one takes its place.
pub(super) async fn run(args: cli::Run) -> Result<Exit, AppError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::Root("loading BPF programs and making cgroups; use sudo"));
    }
    let mut signals = Signals::listen().map_err(system("cannot listen for signals"))?;
    let sources = sources(&args);
    // Before the files are read: no change of them is missed.
    let watch = Watch::new(&sources);
    let loaded = load_policy(&args, &sources)?;
    let place = Place::find(&args.name, args.take_over).await?;
    let descriptors = descriptors::raise_limit();
    descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
    let mut session = place.session(&args.name, Base::Own)?;
    let mut started = start(&args, loaded, Watched { watch, sources }, &mut session, place).await?;
    memory::give_back();
    let outcome = if args.command.is_empty() {
        tokio::select! {
            signal = signals.next() => Ok(Exit::Signal(signal as i32)),
            Some(successor) = started.successors.recv() => {
                let drain_time = Duration::from_secs(args.drain_time);
                if let Err(error) = session.hand_over() {
                    tracing::warn!("cgroup of those that drain: {error}");
                }
                let Started { begun, reloader, successors, .. } = started;
                drop(successors);
                begun.hand_over([reloader], successor, drain_time, &mut signals).await;
                return Ok(Exit::Success);
            }
        }
    } else {
        supervise(&args, &started, session.workload(), descriptors, &mut signals).await
    };
    let stopped = started.stop(&session, args.command.is_empty()).await;
    session.close()?;
    stopped?;
    outcome
}

/// The place that a daemon has: its name.
pub(super) enum Place {
    /// Nobody's before.
    Free(Server),
    /// That of a daemon which runs, and goes on until [`Place::take`].
    Taken(Box<Predecessor>),
}

impl Place {
    /// Where it is to be taken over, that of the daemon of this name, if one runs.
    pub(super) async fn find(name: &str, take_over: bool) -> Result<Self, AppError> {
        let dir = Path::new(admin::DIR);
        if take_over {
            let name = name.to_owned();
            let asked = spawn_blocking(move || Predecessor::ask(dir, &name)).await;
            if let Some(predecessor) = asked.map_err(broke_off)?? {
                return Ok(Self::Taken(Box::new(predecessor)));
            }
        }
        Ok(Self::Free(Server::bind(dir, name)?))
    }

    /// Whether somebody has it until [`Place::take`].
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Taken(_))
    }

    /// The cgroups of whoever has it next.
    pub(super) fn session(&self, name: &str, base: Base) -> Result<Session, AppError> {
        Ok(match self {
            Self::Free(_) => Session::enter(name, base)?,
            Self::Taken(_) => Session::join(name, base)?,
        })
    }

    /// The namespaces and listeners that the daemon before hands over.
    pub(super) fn namespaces(&mut self) -> Vec<HandedOver> {
        match self {
            Self::Free(_) => Vec::new(),
            Self::Taken(predecessor) => predecessor.namespaces(),
        }
    }

    /// The networks that somebody bypassed while the daemon before ran.
    pub(super) fn bypass(&self) -> Result<Vec<ipnet::IpNet>, AppError> {
        let Self::Taken(predecessor) = self else { return Ok(Vec::new()) };
        let read = |network: &String| cli::parse_cidr(network).map_err(AdminError::Protocol);
        Ok(predecessor.offer().bypass.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Takes it. Until here the daemon before has everything, from here on this one. Gives the control
    /// socket, and whether there was another daemon.
    pub(super) async fn take(self, session: &mut Session) -> Result<(Server, bool), AppError> {
        match self {
            Self::Free(server) => Ok((server, false)),
            Self::Taken(predecessor) => {
                let pid = predecessor.offer().pid;
                let server = spawn_blocking(|| predecessor.go()).await.map_err(broke_off)??;
                session.succeed();
                eprintln!("interceptor: took the place of the one with pid {pid}");
                Ok((server, true))
            }
        }
    }
}

fn broke_off(panic: tokio::task::JoinError) -> AppError {
    system("the hand-over broke off")(std::io::Error::other(panic))
}
