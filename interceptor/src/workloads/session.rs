//! The cgroups of one running interceptor: one for itself, exempt, and one for what it covers.

use std::time::Duration;

use super::cgroup::{Cgroup, CgroupError, Hierarchy};

/// Where a session's cgroups are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Below the cgroup in which this process was started.
    Own,
    /// At the top of what is visible: outlasts the container in which this process was started, and with it
    /// the daemons that take each other's place.
    Top,
}

/// `interceptor-NAME/daemon`, `interceptor-NAME/draining` and `interceptor-NAME/workload`, made below a
/// [`Base`], with this process moved into the first (T-8: its exemption is by
/// cgroup, which nothing covered can set). Goes away with the value, also on an early error.
#[derive(Debug)]
pub struct Session {
    home: Cgroup,
    dir: Cgroup,
    daemon: Cgroup,
    draining: Cgroup,
    workload: Cgroup,
    whose: Whose,
}

/// Who removes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This process.
    Ours,
    /// The daemon that runs beside this one: it was there before, or goes on after.
    Anothers,
    /// This process, unless the daemon that took its place lives in them.
    Successors,
    /// They are removed, or left to that daemon.
    Nobodys,
}

impl Session {
    /// Makes the cgroups below `base` and moves this process into its own. What a killed interceptor of the
    /// same name left, and still has processes in it, is taken over where it is.
    ///
    /// # Errors
    /// An interceptor of this name runs, or cgroups cannot be made here.
    pub fn enter(name: &str, base: Base) -> Result<Self, CgroupError> {
        let hierarchy = Hierarchy::discover()?;
        let home = hierarchy.own()?;
        let base = match base {
            Base::Own => home.clone(),
            Base::Top => hierarchy.top(),
        };
        let dir_name = dir_name(name);
        let mut dir = None;
        for stale in hierarchy.find_named(&dir_name) {
            let stale = refuse_live(stale)?;
            // Where nothing runs any more, a container or unit may be about to end.
            if stale.is_in(&base) || stale.is_populated()? {
                dir = Some(stale);
            } else if let Err(error) = stale.remove() {
                tracing::warn!(%error, "a cgroup of an earlier run is left");
            }
        }
        let dir = dir.map_or_else(|| base.create(&dir_name), Ok)?;
        Self::settle(home, dir, Whose::Ours)
    }

    /// Moves this process in with the daemon of this name that runs, so that both are exempt: the sockets
    /// that it hands over are its cgroup's for ever. The cgroups stay that one's until [`Self::succeed`].
    ///
    /// # Errors
    /// Cgroups cannot be changed here.
    pub fn join(name: &str, base: Base) -> Result<Self, CgroupError> {
        let hierarchy = Hierarchy::discover()?;
        let lives = |dir: &&Cgroup| dir.child(DAEMON).is_populated().is_ok_and(|lives| lives);
        let all = hierarchy.find_named(&dir_name(name));
        // It may have died.
        let Some(dir) = all.iter().find(lives).or(all.first()) else {
            return Self::enter(name, base);
        };
        Self::settle(hierarchy.own()?, dir.clone(), Whose::Anothers)
    }

    fn settle(home: Cgroup, dir: Cgroup, whose: Whose) -> Result<Self, CgroupError> {
        let [daemon, draining, workload] = [DAEMON, DRAINING, WORKLOAD].map(|name| dir.child(name));
        // From here on the guard cleans up.
        let session = Self { home, dir, daemon, draining, workload, whose };
        for name in [WORKLOAD, DRAINING, DAEMON] {
            session.dir.create(name)?;
        }
        session.daemon.add_self()?;
        Ok(session)
    }

    /// The daemon that was joined has handed over: the cgroups are this one's.
    pub fn succeed(&mut self) {
        self.whose = Whose::Ours;
    }

    /// Leaves the cgroups to the daemon that has joined. This process goes where those drain whose
    /// place was taken, and is as exempt there.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn hand_over(&mut self) -> Result<(), CgroupError> {
        self.whose = Whose::Successors;
        self.draining.add_self()
    }

    /// Leaves the cgroups as they are, with this process in its own: what is attached goes on, and the
    /// next interceptor of this name finds them.
    pub fn stay(mut self) {
        self.whose = Whose::Nobodys;
    }

    /// The cgroup of this process and its threads.
    pub fn daemon(&self) -> &Cgroup {
        &self.daemon
    }

    /// The cgroups whose processes are exempt: this one's own, and that of those which drain.
    pub fn exempt(&self) -> [&Cgroup; 2] {
        [&self.daemon, &self.draining]
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
        self.whose = Whose::Nobodys;
        self.leave_and_remove()
    }

    fn leave_and_remove(&self) -> Result<(), CgroupError> {
        self.leave()?;
        if self.draining.is_populated()? {
            // A daemon whose place was taken, and which still drains.
            tracing::warn!(
                "cgroups are left to one that drains; `interceptor detach` removes them"
            );
            return Ok(());
        }
        self.dir.remove()
    }

    fn leave(&self) -> Result<(), CgroupError> {
        // Where we came from may be gone (a login scope that ended): then next to our own.
        if let Err(error) = self.home.add_self() {
            self.dir.parent().ok_or(error)?.add_self()?;
        }
        Ok(())
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
        let left = match self.whose {
            Whose::Ours => self.leave_and_remove(),
            Whose::Successors => match self.daemon.is_populated() {
                Ok(true) => Ok(()),
                Ok(false) => self.leave_and_remove(),
                Err(error) => Err(error),
            },
            Whose::Anothers => self.leave(),
            Whose::Nobodys => Ok(()),
        };
        if let Err(error) = left {
            tracing::warn!(%error, "cgroups are left; `interceptor detach` removes them");
        }
    }
}

const DAEMON: &str = "daemon";
const DRAINING: &str = "draining";
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

        let mut session = Session::enter(&name, Base::Own).unwrap();
        let dir = home.child(&dir_name(&name));
        assert_eq!(own(), *session.daemon(), "the daemon moved into its own cgroup");
        assert_eq!(session.daemon().path(), dir.path().join("daemon"));
        assert_eq!(session.workload().path(), dir.path().join("workload"));
        assert_ne!(session.daemon().id().unwrap(), session.workload().id().unwrap());

        let busy = Session::enter(&name, Base::Own).unwrap_err();
        assert_eq!(busy.exit().code(), 73);
        assert!(busy.to_string().contains(&std::process::id().to_string()), "{busy}");
        let busy = Session::clean_stale(&name, Duration::ZERO).await.unwrap_err();
        assert_eq!(busy.exit().code(), 73, "detach does not touch one that runs");

        // As another process would.
        home.add_self().unwrap();
        let joined = Session::join(&name, Base::Own).unwrap();
        assert_eq!(own(), *session.daemon(), "both are in the one cgroup that is exempt");
        drop(joined);
        assert_eq!(own(), home);
        assert!(dir.path().exists(), "one that came to nothing leaves the other's cgroups");
        let mut joined = Session::join(&name, Base::Own).unwrap();
        let draining = session.draining.clone();
        session.hand_over().unwrap();
        assert_eq!(own(), draining);
        let beside = Session::enter(&name, Base::Own).unwrap();
        assert_eq!(own(), *beside.daemon(), "one that drains is in nobody's way");
        drop(beside);
        joined.succeed();
        joined.close().unwrap();
        drop(session);
        assert_eq!(own(), home);
        assert!(!dir.path().exists());

        drop(Session::enter(&name, Base::Own).unwrap());
        assert_eq!(own(), home, "an early error cleans up as well");
        assert!(!dir.path().exists());

        // What a killed daemon leaves: its cgroups, and an orphan in the workload's.
        let workload = home.create(&dir_name(&name)).unwrap().create(WORKLOAD).unwrap();
        let mut orphan = Command::new("sleep").arg("60").spawn().unwrap();
        workload.add(orphan.id()).unwrap();
        let adopted = Session::enter(&name, Base::Own).unwrap();
        assert_eq!(adopted.workload().id().unwrap(), workload.id().unwrap());
        assert_eq!(adopted.workload().procs().unwrap(), [orphan.id()]);
        assert!(adopted.close().is_err(), "never removed under a running workload");
        assert_eq!(own(), home);

        assert!(Session::clean_stale(&name, Duration::from_secs(5)).await.unwrap());
        assert!(!orphan.wait().unwrap().success());
        assert!(!dir.path().exists());
        assert!(!Session::clean_stale(&name, Duration::ZERO).await.unwrap(), "nothing left");

        // From a container, say.
        let elsewhere = home.create(&format!("elsewhere{}", std::process::id())).unwrap();
        elsewhere.add_self().unwrap();
        let own_dir = elsewhere.path().join(dir_name(&name));
        let first = Session::enter(&name, Base::Own).unwrap();
        assert_eq!(first.daemon().path(), own_dir.join(DAEMON));
        first.stay();
        elsewhere.add_self().unwrap();
        let next = Session::enter(&name, Base::Top).unwrap();
        let top = Hierarchy::discover().unwrap().top();
        assert_eq!(next.daemon().path(), top.path().join(dir_name(&name)).join(DAEMON));
        assert!(!own_dir.exists(), "nothing runs where it was");
        next.close().unwrap();
        assert_eq!(own(), elsewhere);
        home.add_self().unwrap();
        elsewhere.remove().unwrap();
    }
}
