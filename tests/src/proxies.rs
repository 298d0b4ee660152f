//! Other people's proxies in the small internet: Squid, tinyproxy and Dante as egress proxies, HAProxy
//! for who reads the PROXY protocol. They see names in the stub DNS, and nothing of this machine's.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{DNS, World, stop};

/// How long one may take to start.
const START: Duration = Duration::from_secs(20);
/// Who may use those that ask.
pub const USER: &str = "workload";
/// And with what.
pub const PASSWORD: &str = "s3cret-word";

/// A proxy that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    /// Where it listens.
    pub at: SocketAddr,
    directory: PathBuf,
    log: PathBuf,
}

impl Proxy {
    /// Squid with basic authentication for [`USER`], any port for CONNECT.
    ///
    /// # Errors
    /// When it is not there and cannot be installed, or does not start.
    pub fn squid(world: &World, at: SocketAddr) -> Result<Self> {
        let program = program("squid", "squid")?;
        let directory = directory(world, at)?;
        let hash = Command::new("openssl").args(["passwd", "-apr1", PASSWORD]).output()?;
        let hash = String::from_utf8(hash.stdout)?;
        readable(&directory.join("users"), &format!("{USER}:{hash}"))?;
        let place = directory.display();
        let text = format!(
            "http_port {at}\n\
             auth_param basic program /usr/lib/squid/basic_ncsa_auth {place}/users\n\
             auth_param basic children 2\nacl users proxy_auth REQUIRED\n\
             http_access allow users\nhttp_access deny all\ncache deny all\n\
             access_log stdio:{place}/access.log\ncache_log {place}/cache.log\n\
             pid_filename none\nnetdb_filename none\ncoredump_dir {place}\n\
             dns_nameservers {DNS}\nshutdown_lifetime 0 seconds\nbuffered_logs off\n"
        );
        readable(&directory.join("squid.conf"), &text)?;
        let mut command = Command::new(program);
        command.args(["-N", "-f"]).arg(directory.join("squid.conf"));
        Self::start(world, command, at, directory, "access.log")
    }

    /// tinyproxy, open to everybody.
    ///
    /// # Errors
    /// As [`Proxy::squid`].
    pub fn tinyproxy(world: &World, at: SocketAddr) -> Result<Self> {
        let program = program("tinyproxy", "tinyproxy")?;
        let directory = directory(world, at)?;
        let text = format!(
            "Port {}\nListen {}\nTimeout 60\nMaxClients 1000\nLogFile \"{}/access.log\"\n\
             LogLevel Connect\n",
            at.port(),
            at.ip(),
            directory.display()
        );
        readable(&directory.join("tinyproxy.conf"), &text)?;
        let mut command = Command::new(program);
        command.args(["-d", "-c"]).arg(directory.join("tinyproxy.conf"));
        Self::start(world, command, at, directory, "access.log")
    }

    /// Dante, a SOCKS 5 server, open to everybody.
    ///
    /// # Errors
    /// As [`Proxy::squid`].
    pub fn dante(world: &World, at: SocketAddr) -> Result<Self> {
        let program = program("danted", "dante-server")?;
        let directory = directory(world, at)?;
        let (ip, port) = (at.ip(), at.port());
        let text = format!(
            "logoutput: stderr\ninternal: {ip} port = {port}\nexternal: {ip}\n\
             clientmethod: none\nsocksmethod: none\nuser.privileged: root\n\
             user.unprivileged: nobody\n\
             client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
             socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0\n command: connect\n \
             log: connect error }}\n"
        );
        readable(&directory.join("danted.conf"), &text)?;
        let mut command = Command::new(program);
        command.args(["-f"]).arg(directory.join("danted.conf"));
        Self::start(world, command, at, directory, "said")
    }

    /// HAProxy, which reads the PROXY protocol and answers with the client that it names.
    ///
    /// # Errors
    /// As [`Proxy::squid`].
    pub fn haproxy(world: &World, at: SocketAddr) -> Result<Self> {
        let program = program("haproxy", "haproxy")?;
        let directory = directory(world, at)?;
        let text = format!(
            "defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  \
             timeout connect 10s\nfrontend f\n  bind {at} accept-proxy\n  \
             http-request return status 200 content-type text/plain lf-string \
             \"%[src] %[dst] %[dst_port]\\n\"\n"
        );
        readable(&directory.join("haproxy.cfg"), &text)?;
        let mut command = Command::new(program);
        command.args(["-db", "-f"]).arg(directory.join("haproxy.cfg"));
        Self::start(world, command, at, directory, "access.log")
    }

    fn start(
        world: &World,
        mut command: Command,
        at: SocketAddr,
        directory: PathBuf,
        log: &str,
    ) -> Result<Self> {
        let said = fs::File::create(directory.join("said"))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let files = [(world.dir().join("resolv.conf"), "/etc/resolv.conf")];
        let child = world.internet.inside_with_files(&files, || command.spawn())??;
        let log = directory.join(log);
        let mut proxy = Self { child, at, directory, log };
        let deadline = Instant::now() + START;
        let connects = || world.internet.inside(|| std::net::TcpStream::connect(at).is_ok());
        while !connects()? {
            if proxy.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("{command:?} did not start: {}", proxy.said());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(proxy)
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last words.
    fn said(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        format!("{}{}", read("said"), read("cache.log"))
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it, so that it accepts no more and says nothing; or lets it go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A stopped one would not hear that it is to end.
        let _ = self.freeze(false);
        let _ = stop(&mut self.child);
    }
}

/// Finds a program of a package, and installs that where it is not there.
fn program(name: &str, package: &str) -> Result<PathBuf> {
    let find = || {
        let directories = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        directories.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    let installed = Command::new("apt-get")
        .args(["install", "-y", "--no-install-recommends", package])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .with_context(|| format!("{name} is not here; install {package}"))?;
    find().with_context(|| {
        let why = String::from_utf8_lossy(&installed.stderr).into_owned();
        format!("{name} is not here, and installing {package} failed: {why}")
    })
}

/// A directory that the proxy's own user may write to.
fn directory(world: &World, at: SocketAddr) -> Result<PathBuf> {
    let directory = world.dir().join(format!("proxy-{}-{}", at.ip(), at.port()));
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o777))?;
    Ok(directory)
}

fn readable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o644))?)
}
