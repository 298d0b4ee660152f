//! A small internet that only a gateway leads to, and gateways there.
//!
//! ```text
//!  …-workload                 …-gateway                         …-net
//!  10.77.0.2 ──────veth────── 10.77.0.1, 10.77.0.3
//!  default via 10.77.0.1      10.78.0.2 ──────────veth───────── 10.78.0.1, everything else
//!                             forwards nothing; knows names
//! ```

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::{Namespace, join, next_number};
use crate::product::binary;
use crate::servers::Servers;
use crate::world::{DNS, WORKLOAD_V4, World, exit_code, stop, text, wait};

/// Where the first gateway is, towards the workload.
pub const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), 15008);
/// Where the second one is.
pub const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3)), 15008);
/// What the outside sees of both.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));
/// How long a gateway may take to start.
const START: Duration = Duration::from_secs(15);

/// The namespace between the workload and the internet. Dropping it removes it.
#[derive(Debug)]
pub struct Passage<'w> {
    // The servers go first.
    _names: Servers,
    /// Where gateways run.
    pub gateway: Namespace,
    world: &'w World,
}

impl<'w> Passage<'w> {
    /// Puts it between a world's workload and its internet: no other way is left.
    ///
    /// # Errors
    /// When a namespace, link or server can't be made.
    pub fn between(world: &'w World) -> Result<Self> {
        let gateway = Namespace::create(next_number(), "gateway")?;
        let World { workload, internet, .. } = world;
        workload.ip(&["link", "del", "veth0"])?;
        join(&gateway, workload)?;
        for at in [FIRST, SECOND] {
            gateway.ip(&["addr", "add", &format!("{}/24", at.ip()), "dev", "veth0"])?;
        }
        workload.ip(&["addr", "add", &format!("{WORKLOAD_V4}/24"), "dev", "veth0"])?;
        workload.ip(&["route", "add", "default", "via", &FIRST.ip().to_string()])?;
        let out = ["link", "add", "out0", "type", "veth", "peer", "name", "veth0", "netns"];
        gateway.ip(&[&out[..], &[internet.name()]].concat())?;
        gateway.ip(&["link", "set", "out0", "up"])?;
        internet.ip(&["link", "set", "veth0", "up"])?;
        gateway.ip(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "out0"])?;
        internet.ip(&["addr", "add", "10.78.0.1/24", "dev", "veth0"])?;
        gateway.ip(&["route", "add", "default", "via", "10.78.0.1"])?;
        // Were anything forwarded, the outside would know the way back.
        let back = format!("{WORKLOAD_V4}/32");
        internet.ip(&["route", "add", &back, "via", &OUTSIDE.to_string()])?;
        let at = SocketAddr::new(FIRST.ip(), 53);
        let names = Servers::start(&gateway, None, Arc::clone(&world.zone), &[at])?;
        let resolv_conf = format!("nameserver {}\noptions timeout:2 attempts:2\n", FIRST.ip());
        world.file("resolv.conf", &resolv_conf)?;
        for (name, at) in [("gw-1.test", FIRST), ("gw-2.test", SECOND)] {
            world.zone.set(name, &[at.ip()]);
        }
        Ok(Self { _names: names, gateway, world })
    }

    /// Writes a certificate for a gateway and its key; gives the paths.
    ///
    /// # Errors
    /// When it can't be signed or written.
    pub fn server_keys(&self, name: &str) -> Result<(String, String)> {
        let (certificate, key) = self.world.authority.server(name)?;
        self.keys(name, &certificate, &key)
    }

    /// The same for a node.
    ///
    /// # Errors
    /// When it can't be signed or written.
    pub fn node_keys(&self, name: &str) -> Result<(String, String)> {
        let (certificate, key) = self.world.authority.client(name)?;
        self.keys(name, &certificate, &key)
    }

    fn keys(&self, name: &str, certificate: &str, key: &str) -> Result<(String, String)> {
        let certificate = self.world.file(&format!("{name}.pem"), certificate)?;
        Ok((certificate, self.world.file(&format!("{name}.key"), key)?))
    }

    /// A gateway called `name` at `at`, with these flags; when it returns, it listens.
    ///
    /// # Errors
    /// When it ends instead, with what it said.
    pub fn start(&self, name: &str, at: SocketAddr, flags: &[&str]) -> Result<Gateway> {
        self.launch(&binary(), name, &["--listen", &at.to_string()], flags)
    }

    /// A gateway called `name` that is dialled at `at`, Istio's form, with these flags; when it returns,
    /// it listens.
    ///
    /// # Errors
    /// As [`Passage::start`].
    pub fn dialled(&self, name: &str, at: IpAddr, flags: &[&str]) -> Result<Gateway> {
        self.dialled_of(&binary(), name, at, flags)
    }

    /// The same of this binary.
    ///
    /// # Errors
    /// As [`Passage::start`].
    pub fn dialled_of(
        &self,
        binary: &Path,
        name: &str,
        at: IpAddr,
        flags: &[&str],
    ) -> Result<Gateway> {
        self.launch(binary, name, &["--address", &at.to_string()], flags)
    }

    fn launch(&self, binary: &Path, name: &str, at: &[&str], flags: &[&str]) -> Result<Gateway> {
        let (certificate, key) = self.server_keys(name)?;
        let log = self.world.dir().join(format!("{name}.log"));
        let stderr = tempfile::tempfile()?;
        let mut command = self.world.command(binary);
        command
            .arg("gateway")
            .args(at)
            .args(["--resolver", &DNS.to_string()])
            .args(["--tls-cert", &certificate, "--tls-key", &key, "--client-ca"])
            .arg(self.world.ca_file())
            .arg("--access-log")
            .arg(&log)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?);
        let child = self.gateway.inside(|| command.spawn())??;
        let mut gateway = Gateway { child, log, stderr };
        let deadline = Instant::now() + START;
        while !gateway.stderr()?.contains("gateway on") {
            if let Some(status) = gateway.child.try_wait()? {
                bail!("the gateway ended ({status}): {}", gateway.stderr()?);
            }
            if Instant::now() > deadline {
                bail!("not ready in {START:?}: {}", gateway.stderr()?);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(gateway)
    }

    /// How many TCP connections the workload's namespace has to a gateway.
    ///
    /// # Errors
    /// When `ss` can't be run.
    pub fn connections(&self, to: SocketAddr) -> Result<usize> {
        let mut ss = self.world.command("ss");
        ss.args(["-Htn", "state", "established", "dst", &to.to_string()]);
        let done = self.world.output(&mut ss, Duration::from_secs(20))?;
        Ok(done.stdout.lines().count())
    }
}

/// A gateway that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    log: PathBuf,
    stderr: File,
}

impl Gateway {
    /// What it said so far.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn stderr(&mut self) -> Result<String> {
        text(&mut self.stderr)
    }

    /// Its access log so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The lines after the first `before`, once there are `count` (or 3 seconds passed).
    #[must_use]
    pub fn wait_for_lines(&self, before: usize, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.lines().len() < before + count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        self.lines().split_off(before)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process id")?);
        Ok(kill(pid, signal)?)
    }

    /// Its exit status as a shell tells it, if it ends within `limit`.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        let status: Option<ExitStatus> = wait(&mut self.child, limit)?;
        Ok(status.map(exit_code))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A second signal ends what drains.
        let _ = self.signal(Signal::SIGTERM);
        let _ = wait(&mut self.child, Duration::from_millis(500));
        let _ = stop(&mut self.child);
    }
}
