//! The interceptor that covers a room: this same program, as a user would start it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::SelftestError;
use super::room::Room;
use super::way::{ALLOWED, ALLOWED_NET4, ALLOWED_NET6, HTTP, NAMED, RESOLVER, TCP, TLS, UDP, WILD};
use crate::admin::client;

/// How long it may take to start.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end.
const END: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// A running interceptor. Dropping it stops it, and removes what it could not remove itself.
#[derive(Debug)]
pub(super) struct Cover {
    child: Child,
    name: String,
    messages: PathBuf,
}

impl Cover {
    /// Covers `room`; returns when it is covered. Files go into `directory`.
    ///
    /// # Errors
    /// It does not start, with what it said.
    pub(super) async fn start(
        room: &Room,
        name: &str,
        directory: &Path,
    ) -> Result<Self, SelftestError> {
        let failed = |source| SelftestError::Cover { message: String::new(), source: Some(source) };
        let policy = directory.join("policy.yaml");
        std::fs::write(&policy, policy_text()).map_err(failed)?;
        let messages = directory.join("messages");
        let file = File::create(&messages).map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["run", "--name", name, "--outbound", "registry-only"])
            .args(["--enforcement", "strict"])
            .arg("--cgroup")
            .arg(room.cgroup.path())
            .arg("--netns")
            .arg(room.near_path())
            .arg("-f")
            .arg(&policy)
            .args(["--resolver", &RESOLVER.to_string()])
            .arg("--access-log")
            .arg(directory.join("access.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = room.node.run(|| command.spawn()).and_then(|child| child).map_err(failed)?;
        let mut cover = Self { child, name: name.to_owned(), messages };
        let until = Instant::now() + START;
        // It answers once everything is in place.
        while client::status(name).is_err() {
            if let Some(status) = cover.child.try_wait().map_err(failed)? {
                return Err(cover.said(&format!("it ended ({status})")));
            }
            if Instant::now() > until {
                return Err(cover.said(&format!("it was not ready in {START:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(cover)
    }

    /// The ports of its listeners, for IPv4 and IPv6.
    ///
    /// # Errors
    /// It cannot be asked, or has none.
    pub(super) fn doors(&self) -> Result<(u16, u16), SelftestError> {
        let status = client::status(&self.name).map_err(|error| self.said(&error.to_string()))?;
        // As in `127.0.0.1-4:41234`.
        let port = |listener: &Option<String>| -> Option<u16> {
            listener.as_ref()?.rsplit_once(':')?.1.parse().ok()
        };
        status
            .namespaces
            .first()
            .and_then(|one| Some((port(&one.listener_v4)?, port(&one.listener_v6)?)))
            .ok_or_else(|| self.said("it has no listeners in the room"))
    }

    /// An error with its own words behind it.
    fn said(&self, what: &str) -> SelftestError {
        let words = std::fs::read_to_string(&self.messages).unwrap_or_default();
        SelftestError::Cover { message: format!("{what}\n{}", words.trim()), source: None }
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// It did not end, or not in order.
    pub(super) fn stop(mut self) -> Result<(), SelftestError> {
        match self.terminate() {
            // 128 + SIGTERM is how `run --cgroup` says that it was told to stop.
            Ok(Some(status)) if status.code() == Some(128 + Signal::SIGTERM as i32) => Ok(()),
            Ok(Some(status)) => Err(self.said(&format!("it ended with {status}"))),
            Ok(None) => Err(self.said(&format!("it did not end in {END:?}"))),
            Err(source) => {
                Err(SelftestError::Cover { message: String::new(), source: Some(source) })
            }
        }
    }

    fn terminate(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        let until = Instant::now() + END;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        if matches!(self.terminate(), Ok(Some(_))) {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Killed, it leaves its pins and cgroups.
        let detach = Command::new("/proc/self/exe")
            .args(["detach", "--name", &self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !detach.is_ok_and(|status| status.success()) {
            eprintln!("interceptor: run `interceptor detach --name {}`", self.name);
        }
    }
}

/// What the covered room may reach.
fn policy_text() -> String {
    let entry = |name: &str, host: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n\
             spec:\n  hosts: [\"{host}\"]\n{spec}---\n"
        )
    };
    let port = |number: u16, protocol: &str| {
        let name = protocol.to_lowercase();
        format!("  - {{number: {number}, name: {name}, protocol: {protocol}}}\n")
    };
    let addresses = format!("  addresses: [\"{ALLOWED_NET4}\", \"{ALLOWED_NET6}\"]\n");
    let web = [port(TLS, "TLS"), port(HTTP, "HTTP")].concat();
    let all = [web.clone(), port(TCP, "TCP"), port(UDP, "UDP")].concat();
    [
        entry("allowed", ALLOWED, &format!("{addresses}  ports:\n{all}  resolution: NONE\n")),
        entry(
            "wild",
            &format!("*.{WILD}"),
            &format!("{addresses}  ports:\n{}  resolution: NONE\n", port(TLS, "TLS")),
        ),
        entry("named", NAMED, &format!("  ports:\n{web}  resolution: DNS\n")),
    ]
    .concat()
}
