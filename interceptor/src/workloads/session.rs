//! The cgroups of one running interceptor: one for itself, exempt, and one for what it covers.

use std::time::Duration;

use super::cgroup::{Cgroup, CgroupError, Hierarchy};

/// `interceptor-NAME/daemon` and `interceptor-NAME/workload`, made below the cgroup in which we
/// were started, with this process moved into the first (T-8: its exemption is by cgroup, which
/// nothing covered can set). Goes away with the value, also on an early error.
#[derive(Debug)]
pub struct Session {
    home: Cgroup,
    dir: Cgroup,
    daemon: Cgroup,
    workload: Cgroup,
    closed: bool,
}

impl Session {
    /// Makes the two cgroups and moves this process into its own. What a killed interceptor of the
    /// same name left is taken over where it is, with the processes that still run in it.
    ///
    /// # Errors
    /// An interceptor of this name runs, or cgroups cannot be made here.
    pub fn enter(name: &str) -> Result<Self, CgroupError> {
        let hierarchy = Hierarchy::discover()?;
        let home = hierarchy.own()?;
        let dir_name = dir_name(name);
        let dir = match hierarchy.find_named(&dir_name).into_iter().next() {
            Some(stale) => refuse_live(stale)?,
            None => home.create(&dir_name)?,
        };
        // From here on the guard cleans up.
        let mut session =
            Self { home, daemon: dir.clone(), workload: dir.clone(), dir, closed: false };
        session.workload = session.dir.create(WORKLOAD)?;
        session.daemon = session.dir.create(DAEMON)?;
        session.daemon.add_self()?;
        Ok(session)
    }

    /// The cgroup of this process and its threads.
    pub fn daemon(&self) -> &Cgroup {
        &self.daemon
    }

    /// The cgroup for commands.
    pub fn workload(&self) -> &Cgroup {
        &self.workload
    }

    /// Moves this process back and removes both cgroups. The workload's must be empty by now
    /// ([`Cgroup::terminate`]).
    ///
    /// # Errors
    /// A process is still in the workload's; or ours cannot be left.
    pub fn close(mut self) -> Result<(), CgroupError> {
        self.closed = true;
        self.leave()
    }

    fn leave(&self) -> Result<(), CgroupError> {
        // Where we came from may be gone (a login scope that ended): then next to our own.
        if let Err(error) = self.home.add_self() {
            self.dir.parent().ok_or(error)?.add_self()?;
        }
        self.dir.remove()
    }

    /// Removes what killed interceptors of this name left, terminating what still runs in it:
    /// `grace` after SIGTERM it is killed. Gives whether there was anything.
    ///
    /// # Errors
    /// An interceptor of this name runs, or something cannot be removed.
    pub async fn clean_stale(name: &str, grace: Duration) -> Result<bool, CgroupError> {
        let mut found = false;
        for dir in Hierarchy::discover()?.find_named(&dir_name(name)) {
            let dir = refuse_live(dir)?;
            dir.terminate(grace).await?;
            dir.remove()?;
            found = true;
        }
        Ok(found)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if let Err(error) = self.leave() {
            tracing::warn!(%error, "cgroups are left; `interceptor detach` removes them");
        }
    }
}

const DAEMON: &str = "daemon";
const WORKLOAD: &str = "workload";

fn dir_name(name: &str) -> String {
    format!("interceptor-{name}")
}

fn refuse_live(dir: Cgroup) -> Result<Cgroup, CgroupError> {
    let daemon = dir.child(DAEMON);
    let pids = daemon.procs()?;
    if daemon.is_populated()? {
        return Err(CgroupError::Busy(dir.path().to_owned(), pids));
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::workloads::testing::kernel;

    fn own() -> Cgroup {
        Hierarchy::discover().unwrap().own().unwrap()
    }

    /// One test, as each step moves this whole process.
    #[tokio::test]
    async fn life_of_a_session() {
        if !kernel("life_of_a_session") {
            return;
        }
        let name = format!("unit{}", std::process::id());
        let home = own();

        let session = Session::enter(&name).unwrap();
        let dir = home.child(&dir_name(&name));
        assert_eq!(own(), *session.daemon(), "the daemon moved into its own cgroup");
        assert_eq!(session.daemon().path(), dir.path().join("daemon"));
        assert_eq!(session.workload().path(), dir.path().join("workload"));
        assert_ne!(session.daemon().id().unwrap(), session.workload().id().unwrap());

        let busy = Session::enter(&name).unwrap_err();
        assert_eq!(busy.exit().code(), 73);
        assert!(busy.to_string().contains(&std::process::id().to_string()), "{busy}");
        let busy = Session::clean_stale(&name, Duration::ZERO).await.unwrap_err();
        assert_eq!(busy.exit().code(), 73, "detach does not touch one that runs");

        session.close().unwrap();
        assert_eq!(own(), home);
        assert!(!dir.path().exists());

        drop(Session::enter(&name).unwrap());
        assert_eq!(own(), home, "an early error cleans up as well");
        assert!(!dir.path().exists());

        // What a killed daemon leaves: its cgroups, and an orphan in the workload's.
        let workload = home.create(&dir_name(&name)).unwrap().create(WORKLOAD).unwrap();
        let mut orphan = Command::new("sleep").arg("60").spawn().unwrap();
        workload.add(orphan.id()).unwrap();
        let adopted = Session::enter(&name).unwrap();
        assert_eq!(adopted.workload().id().unwrap(), workload.id().unwrap());
        assert_eq!(adopted.workload().procs().unwrap(), [orphan.id()]);
        assert!(adopted.close().is_err(), "never removed under a running workload");
        assert_eq!(own(), home);

        assert!(Session::clean_stale(&name, Duration::from_secs(5)).await.unwrap());
        assert!(!orphan.wait().unwrap().success());
        assert!(!dir.path().exists());
        assert!(!Session::clean_stale(&name, Duration::ZERO).await.unwrap(), "nothing left");
    }
}
