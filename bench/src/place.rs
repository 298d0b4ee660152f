//! A place to measure at: a small internet of its own with servers, a load generator, and between
//! them nothing, interceptor, or a peer.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::{Context, Result, bail};
use interceptor_tests::product::Interceptor;
use interceptor_tests::world::{World, stop, wait};
use serde::Deserialize;

use crate::job::{Job, Report};
use crate::load::READY;
use crate::peers::{Peer, Peers};
use crate::policy;
use crate::scenario::Service;
use crate::serve::Servers;

/// How long anything may take to be ready.
const START: Duration = Duration::from_secs(120);

/// What is between the workload and the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Direct,
    /// interceptor, the servers' network bypassed.
    Bypass,
    /// interceptor with the fast path.
    Name,
    /// interceptor without the fast path: all through its proxy.
    Proxy,
    /// Envoy.
    Envoy,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
}

impl Kind {
    /// In the order of results.
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Bypass,
        Self::Name,
        Self::Proxy,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
    ];

    /// Who does the work, as results name it.
    pub(crate) fn peer(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bypass | Self::Name | Self::Proxy => "interceptor",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The tier that traffic of this service takes here.
    pub(crate) fn tier(self, service: Service) -> &'static str {
        match (self, service) {
            (Self::Direct, _) => "direct",
            (Self::Bypass, _) => "bypass",
            (Self::Name, _) => "name",
            (_, Service::Tls | Service::Tcp) => "relay",
            (_, Service::Http | Service::Originate) => "http",
        }
    }

    /// Whether interceptor is there.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Bypass | Self::Name | Self::Proxy)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bypass => f.write_str("interceptor (bypass)"),
            Self::Name => f.write_str("interceptor (name)"),
            Self::Proxy => f.write_str("interceptor (proxy)"),
            other => f.write_str(other.peer()),
        }
    }
}

/// Something set up wrongly on purpose, to see that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Breakage {
    /// interceptor has a policy that allows none of the hosts.
    Policy,
    /// interceptor's places have the proxy where a direct way was meant, and the other way round.
    Tier,
}

/// What places are made of.
#[derive(Debug)]
pub(crate) struct Tools {
    /// This program.
    pub(crate) own: PathBuf,
    /// interceptor's.
    pub(crate) interceptor: PathBuf,
    /// The peers that are installed.
    pub(crate) peers: Peers,
    /// What to set up wrongly.
    pub(crate) breakage: Option<Breakage>,
}

/// Connections that interceptor saw so far, by the way that they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Flows {
    pub(crate) bypass: u64,
    pub(crate) direct: u64,
    pub(crate) name: u64,
    pub(crate) proxy: u64,
}

impl Flows {
    /// What came since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            bypass: self.bypass - before.bypass,
            direct: self.direct - before.direct,
            name: self.name - before.name,
            proxy: self.proxy - before.proxy,
        }
    }
}

/// A place, up and ready. Dropping it ends and removes everything.
#[derive(Debug)]
pub(crate) struct Place {
    kind: Kind,
    // Dropped in this order: the workload first, the world last.
    agent: Agent,
    peer: Option<Peer>,
    _servers: Servers,
    ours: Option<(String, PathBuf)>,
    log: Option<PathBuf>,
    world: World,
}

impl Place {
    /// Sets the place up with the policy for all services.
    pub(crate) fn set_up(kind: Kind, tools: &Tools) -> Result<Self> {
        let world = world()?;
        let allowed = if tools.breakage == Some(Breakage::Policy) {
            policy::hosts(1)
        } else {
            policy::services()
        };
        let file = world.file("policy.yaml", &allowed)?;
        let servers = Servers::start(&world.internet, Arc::clone(&world.authority))?;
        let place = if kind.is_ours() {
            let swapped = tools.breakage == Some(Breakage::Tier);
            let fast = if (kind == Kind::Name) == swapped { "false" } else { "true" };
            let mut flags = vec!["-f", &file, "--fast-path", fast];
            if kind == Kind::Bypass && !swapped {
                flags.extend(["--bypass", "203.0.113.0/24"]);
            }
            Self::ours(kind, tools, world, servers, &flags)?
        } else {
            let peer = tools.peers.start(kind, &world)?;
            Self::with_peer(kind, tools, world, servers, peer)?
        };
        if kind == Kind::Name && tools.breakage.is_none() {
            place.wait_for_names()?;
        }
        Ok(place)
    }

    /// interceptor with these flags around the load generator.
    pub(crate) fn ours(
        kind: Kind,
        tools: &Tools,
        world: World,
        servers: Servers,
        flags: &[&str],
    ) -> Result<Self> {
        let flags = [&["--outbound", "registry-only"], flags].concat();
        let product = Interceptor::new(&world, &tools.interceptor, &flags);
        let agent = agent_command(tools, &world)?;
        let words: Vec<&str> = agent.iter().map(String::as_str).collect();
        let agent = Agent::start(&world, product.run_command(&words))?;
        let name = product.name().to_owned();
        let log = Some(world.dir().join(format!("{name}.log")));
        let ours = Some((name, tools.interceptor.clone()));
        Ok(Self { kind, agent, peer: None, _servers: servers, ours, log, world })
    }

    /// A load generator on its own; a peer (or nothing) is there already.
    pub(crate) fn with_peer(
        kind: Kind,
        tools: &Tools,
        world: World,
        servers: Servers,
        peer: Option<Peer>,
    ) -> Result<Self> {
        let words = agent_command(tools, &world)?;
        let mut command = world.command(&words[0]);
        command.args(&words[1..]);
        let agent = Agent::start(&world, command)?;
        let log = peer.as_ref().map(|peer| peer.log().to_owned());
        Ok(Self { kind, agent, peer, _servers: servers, ours: None, log, world })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Does a job in the workload's place.
    ///
    /// # Errors
    /// When the load generator is gone. That a job failed is in its report.
    pub(crate) fn run(&mut self, job: &Job) -> Result<Report> {
        self.agent.run(job).with_context(|| format!("the load generator at {}", self.kind))
    }

    /// The processes of interceptor or the peer.
    pub(crate) fn processes(&self) -> Vec<u32> {
        match (&self.ours, &self.peer) {
            (Some(_), _) => vec![self.agent.child.id()],
            (None, Some(peer)) => peer.processes(),
            (None, None) => Vec::new(),
        }
    }

    /// interceptor's count of flows; none at other places.
    pub(crate) fn flows(&self) -> Result<Option<Flows>> {
        if self.ours.is_none() {
            return Ok(None);
        }
        #[derive(Deserialize)]
        struct Status {
            tiers: Flows,
        }
        let status: Status = serde_json::from_value(self.status()?)?;
        Ok(Some(status.tiers))
    }

    /// Where the log ends; 0 where there is none.
    pub(crate) fn log_end(&self) -> u64 {
        self.log.as_ref().and_then(|log| fs::metadata(log).ok()).map_or(0, |meta| meta.len())
    }

    /// The log's lines after `start`, once there are `count` of them or 3 seconds are over.
    pub(crate) fn log_since(&self, start: u64, count: u64) -> Vec<String> {
        let Some(log) = &self.log else { return Vec::new() };
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let bytes = fs::read(log).unwrap_or_default();
            let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
            let text = String::from_utf8_lossy(&bytes[start..]);
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() as u64 >= count || Instant::now() > deadline {
                return lines;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Result<serde_json::Value> {
        let (name, binary) = self.ours.as_ref().context("no interceptor is here")?;
        let mut command = self.world.command(binary);
        command.args(["status", "-o", "json", "--name", name]);
        let finished = self.world.output(&mut command, Duration::from_secs(20))?;
        serde_json::from_str(&finished.stdout).context(finished.stderr)
    }

    /// Waits until a name that was resolved is in the kernel's table.
    fn wait_for_names(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status()?;
            let tables = status["tables"].as_array().context("no tables in the status")?;
            let names = tables.iter().find(|table| table["name"] == "NAMES");
            if names.and_then(|table| table["entries"].as_u64()).unwrap_or_default() > 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("no name came into the kernel's table");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ended = self.agent.end();
        let Some((name, binary)) = &self.ours else { return };
        if !ended {
            let mut detach = self.world.command(binary);
            detach.args(["detach", "--name", name]);
            if let Err(error) = self.world.output(&mut detach, Duration::from_secs(20)) {
                eprintln!("cannot clean up after {name}: {error:#}");
            }
        }
    }
}

/// A world whose names are those of the services, with room for many short connections.
pub(crate) fn world() -> Result<World> {
    let world = World::bare()?;
    for service in Service::ALL {
        world.zone.set(service.host(), &[service.address().into()]);
    }
    world.workload.inside(|| -> Result<()> {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000")?;
        Ok(fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?)
    })??;
    Ok(world)
}

fn agent_command(tools: &Tools, world: &World) -> Result<Vec<String>> {
    let own = tools.own.to_str().context("this program's path is not UTF-8")?;
    let authority = world.ca_file().to_string_lossy().into_owned();
    Ok(vec![own.to_owned(), "load".to_owned(), authority])
}

/// The load generator's process (or interceptor's, around it).
#[derive(Debug)]
struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: PathBuf,
}

impl Agent {
    fn start(world: &World, mut command: Command) -> Result<Self> {
        let stderr = world.dir().join("stderr");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&stderr)?);
        let mut child = world.spawn(&mut command)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the output was asked for and is not there")?;
        let mut agent = Self { child, stdin, stdout: BufReader::new(stdout), stderr };
        while agent.line()?.trim() != READY {}
        Ok(agent)
    }

    fn run(&mut self, job: &Job) -> Result<Report> {
        let stdin = self.stdin.as_mut().context("it was told to end")?;
        writeln!(stdin, "{}", serde_json::to_string(job)?)?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            let said = fs::read_to_string(&self.stderr).unwrap_or_default();
            bail!("it ended: {}", said.trim());
        }
        Ok(line)
    }

    /// Ends it by the end of its input; whether it ended by itself.
    fn end(&mut self) -> bool {
        self.stdin = None;
        let ended = matches!(wait(&mut self.child, START), Ok(Some(status)) if status.success());
        ended || stop(&mut self.child).is_ok_and(|status| status.success())
    }
}

/// Whether somebody accepts connections on this loopback port of the workload's namespace, soon.
pub(crate) fn wait_for_port(world: &World, port: u16, alive: &mut Child, log: &Path) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let open = world.workload.inside(|| std::net::TcpStream::connect(("127.0.0.1", port)))?;
        if open.is_ok() {
            return Ok(());
        }
        if alive.try_wait()?.is_some() || Instant::now() > deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("nobody listens on port {port}: {}", said.trim());
        }
        thread::sleep(Duration::from_millis(5));
    }
}
