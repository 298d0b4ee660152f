//! The small internet: two namespaces, one for everything out there, one for the workload.
//!
//! ```text
//!  …-workload                          …-net
//!  10.77.0.2, 2001:db8:77::2 ──veth── 10.77.0.1, 2001:db8:77::1
//!                                      192.0.2.0/24 198.51.100.0/24 203.0.113.0/24
//!                                      2001:db8:1::/48 (all local: every address answers)
//!                                      2001:db8:dead::/48 (swallowed without an answer)
//! ```
//!
//! All addresses are for documentation (RFC 5737, RFC 3849) and no route leaves the machine.

use std::env;
use std::fs::{self, File, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::ca::Authority;
use crate::capture::Capture;
use crate::dns::Zone;
use crate::netns::{Namespace, join, next_number, sweep_leftovers};
use crate::servers::{Seen, Servers};
use crate::snapshot::BPFFS;

/// The stub DNS server.
pub const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));
/// The stub DNS server, over IPv6.
pub const DNS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x53));
/// httpbin.org
pub const HTTPBIN: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// www.google.com
pub const GOOGLE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 4));
/// edition.cnn.com
pub const CNN: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20));
/// en.wikipedia.org, and wikipedia.org itself
pub const WIKIPEDIA_EN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 30));
/// de.wikipedia.org
pub const WIKIPEDIA_DE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 31));
/// v4.example.com and the IPv4 side of dual.example.com
pub const EXAMPLE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 40));
/// v6.example.com and the IPv6 side of dual.example.com
pub const EXAMPLE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x40));
/// The address of the UDP echo service.
pub const UDP_ECHO: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 50));
/// An address that swallows packets; the IPv6 side of deadv6.example.com.
pub const DEAD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1));
/// The workload's IPv4 address.
pub const WORKLOAD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The workload's IPv6 address.
pub const WORKLOAD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2));

/// Held shared by every world, alone by a test that compares the whole machine.
const LOCK: &str = "/run/interceptor-tests.lock";

/// The stub internet and the workload's place in it. Dropping it removes everything.
#[derive(Debug)]
pub struct World {
    // Dropped in this order: servers, then the namespaces that they are in, the lock last.
    servers: Servers,
    /// Where the workload lives.
    pub workload: Namespace,
    /// Where everything else lives.
    pub internet: Namespace,
    /// The names that the stub DNS server knows.
    pub zone: Arc<Zone>,
    /// The authority that signed all certificates out there.
    pub authority: Arc<Authority>,
    dir: TempDir,
    _lock: Flock<File>,
}

impl World {
    /// Brings the small internet up.
    ///
    /// # Errors
    /// When not root, or when a namespace, link or server can't be made.
    pub fn new() -> Result<Self> {
        Self::build(FlockArg::LockShared, Inhabited::Yes)
    }

    /// [`World::new`] for a test that needs the kernel; `None` where [`kernel_tests`] excuses it.
    ///
    /// # Errors
    /// As [`World::new`].
    ///
    /// # Panics
    /// As [`kernel_tests`].
    pub fn testable() -> Result<Option<Self>> {
        kernel_tests().then(Self::new).transpose()
    }

    /// A world without inhabitants: every address there is answers, but nothing listens (DNS
    /// aside) and no name exists until somebody puts it there.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn bare() -> Result<Self> {
        Self::build(FlockArg::LockShared, Inhabited::No)
    }

    /// Like [`World::new`], but no other world of the tests exists at the same time.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn alone() -> Result<Self> {
        Self::build(FlockArg::LockExclusive, Inhabited::Yes)
    }

    /// Writes a file into [`World::dir`], for `-f` and the like, and gives its path.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir().join(name);
        write_readable(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Writes a ServiceEntry into a file and gives its path. `more` are further lines of its
    /// `spec`, each indented by two blanks.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn entry(&self, host: &str, port: u16, protocol: &str, more: &str) -> Result<String> {
        let name = format!("{}-{port}", host.replace(['*', '.'], "x"));
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n\
             spec:\n  hosts:\n  - \"{host}\"\n  ports:\n  - number: {port}\n    name: port\n    \
             protocol: {protocol}\n{more}"
        );
        self.file(&format!("{name}.yaml"), &text)
    }

    fn build(lock: FlockArg, inhabited: Inhabited) -> Result<Self> {
        if !geteuid().is_root() {
            bail!("network namespaces need root");
        }
        let file = File::create(LOCK).with_context(|| format!("opening {LOCK}"))?;
        let lock = Flock::lock(file, lock).map_err(|(_, e)| e).context("waiting for the lock")?;
        sweep_leftovers();
        mount_bpffs()?;

        let dir = tempfile::Builder::new().prefix("interceptor-world-").tempdir()?;
        // Under sudo the workload is the invoking user, who must read the certificate.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let authority = Arc::new(Authority::generate()?);
        write_readable(&dir.path().join("ca.pem"), &authority.pem())?;
        let resolv_conf = format!("nameserver {DNS}\noptions timeout:2 attempts:2\n");
        write_readable(&dir.path().join("resolv.conf"), &resolv_conf)?;
        let nsswitch = "passwd: files\ngroup: files\nhosts: files dns\n";
        write_readable(&dir.path().join("nsswitch.conf"), nsswitch)?;

        let number = next_number();
        let internet = Namespace::create(number, "net")?;
        let workload = Namespace::create(number, "workload")?;
        connect(&internet, &workload)?;
        let zone = Arc::new(Zone::default());
        if inhabited == Inhabited::Yes {
            fill(&zone);
        } else {
            // Not in the local table, which would shadow the way back to the workload.
            let everything = ["dev", "lo", "table", "main"];
            internet.ip(&[&["route", "add", "local", "0.0.0.0/0"][..], &everything].concat())?;
            internet.ip(&[&["-6", "route", "add", "local", "::/0"][..], &everything].concat())?;
        }
        let servers = Servers::start(
            &internet,
            (inhabited == Inhabited::Yes).then(|| Arc::clone(&authority)),
            Arc::clone(&zone),
            &[SocketAddr::new(DNS, 53), SocketAddr::new(DNS_V6, 53)],
        )?;
        Ok(Self { servers, workload, internet, zone, authority, dir, _lock: lock })
    }

    /// A directory of this world, readable for everyone, removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The authority's certificate, as clients get it in `CURL_CA_BUNDLE`.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The HTTP requests that reached the servers so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.servers.seen()
    }

    /// Starts to capture at the far side of the workload's link.
    ///
    /// # Errors
    /// When the packet socket can't be opened.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.internet)
    }

    /// A program with this world's certificate authority and none of the caller's proxies or
    /// curl settings in its environment.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("CURL_CA_BUNDLE", self.ca_file())
            .env("SSL_CERT_FILE", self.ca_file())
            .env("CURL_HOME", self.dir())
            .env("LC_ALL", "C.UTF-8");
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_ascii_uppercase());
        }
        command
    }

    /// Starts a program in the workload's namespace, with the stub's resolv.conf.
    ///
    /// # Errors
    /// When the namespace can't be entered or the program not be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        let files = [
            (self.dir().join("resolv.conf"), "/etc/resolv.conf"),
            // Names are asked for over the network, not from a service of the machine.
            (self.dir().join("nsswitch.conf"), "/etc/nsswitch.conf"),
        ];
        self.workload
            .inside_with_files(&files, || command.spawn())?
            .with_context(|| format!("starting {program}"))
    }

    /// Runs a program in the workload's namespace to its end.
    ///
    /// # Errors
    /// When it can't be started, or has not ended after `limit`: then it was told to stop, and
    /// killed when it didn't.
    pub fn output(&self, command: &mut Command, limit: Duration) -> Result<Finished> {
        // Files, not pipes: what a grandchild holds open can't make the reader wait.
        let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let mut child = self.spawn(command)?;
        let status = wait(&mut child, limit)?;
        let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
        let Some(status) = status else {
            stop(&mut child)?;
            bail!("not done after {limit:?}: {command:?}\nstdout: {stdout}\nstderr: {stderr}");
        };
        Ok(Finished { code: exit_code(status), stdout, stderr })
    }

    /// [`World::output`] of several programs at the same time.
    ///
    /// # Errors
    /// As [`World::output`], for any of them.
    ///
    /// # Panics
    /// Never: the threads don't.
    pub fn outputs(&self, commands: Vec<Command>, limit: Duration) -> Result<Vec<Finished>> {
        std::thread::scope(|scope| {
            let started: Vec<_> = commands
                .into_iter()
                .map(|mut command| scope.spawn(move || self.output(&mut command, limit)))
                .collect();
            started.into_iter().map(|thread| thread.join().expect("no panic in it")).collect()
        })
    }

    /// Runs `curl` with these arguments in the workload's namespace, not intercepted.
    ///
    /// # Errors
    /// As [`World::output`].
    pub fn curl(&self, arguments: &[&str]) -> Result<Finished> {
        self.output(self.command("curl").args(arguments), Duration::from_secs(20))
    }
}

/// Whether a world has its usual servers and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inhabited {
    Yes,
    No,
}

/// What a program left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status, 128 + n when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Waits for a child, at most `limit`; `None` when it is still running.
///
/// # Errors
/// When it isn't a child of this process.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks a child to end (SIGTERM) and kills it when it is still there after 8 seconds.
///
/// # Errors
/// When it isn't a child of this process.
pub fn stop(child: &mut Child) -> Result<std::process::ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    if child.try_wait()?.is_none() {
        // It may end by itself in between; then there is nobody to tell.
        let _ = kill(pid, Signal::SIGTERM);
    }
    if let Some(status) = wait(child, Duration::from_secs(8))? {
        return Ok(status);
    }
    child.kill()?;
    Ok(child.wait()?)
}

/// The exit status as a shell would tell it.
#[must_use]
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Everything in a file, from its start, broken UTF-8 replaced.
pub(crate) fn text(file: &mut File) -> Result<String> {
    // Whoever writes the file may share the offset, which must not move under it.
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a file that everyone may read, whatever the umask is.
fn write_readable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o644))?)
}

/// Whether tests that need the kernel can run here. Without root they fail with the reason,
/// unless `INTERCEPTOR_NO_KERNEL=1` says that the machine can't: then the test ends early and
/// says so on standard error.
///
/// # Panics
/// When not root and not excused.
#[must_use]
pub fn kernel_tests() -> bool {
    if geteuid().is_root() {
        return true;
    }
    let excused = env::var_os("INTERCEPTOR_NO_KERNEL").is_some_and(|value| value == "1");
    assert!(excused, "needs root: run `cargo xtask test`, or set INTERCEPTOR_NO_KERNEL=1");
    eprintln!("NOT TESTED (INTERCEPTOR_NO_KERNEL=1): this test needs namespaces and BPF");
    false
}

/// Mounts bpffs on the machine, where there is none yet, and leaves it there. The product would
/// do so too, but in the workload's mount namespace, and its pins would die with that.
fn mount_bpffs() -> Result<()> {
    let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        let none: Option<&str> = None;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("mounting bpffs on {BPFFS}"))?;
    }
    Ok(())
}

/// Addresses and routes of both sides.
fn connect(internet: &Namespace, workload: &Namespace) -> Result<()> {
    join(internet, workload)?;
    // Duplicate address detection would keep an IPv6 address unusable for a second.
    internet.ip(&["addr", "add", "10.77.0.1/24", "dev", "veth0"])?;
    internet.ip(&["addr", "add", "2001:db8:77::1/64", "dev", "veth0", "nodad"])?;
    workload.ip(&["addr", "add", &format!("{WORKLOAD_V4}/24"), "dev", "veth0"])?;
    workload.ip(&["addr", "add", &format!("{WORKLOAD_V6}/64"), "dev", "veth0", "nodad"])?;
    workload.ip(&["route", "add", "default", "via", "10.77.0.1"])?;
    workload.ip(&["-6", "route", "add", "default", "via", "2001:db8:77::1"])?;
    for range in ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"] {
        internet.ip(&["route", "add", "local", range, "dev", "lo"])?;
    }
    internet.ip(&["-6", "route", "add", "local", "2001:db8:1::/48", "dev", "lo"])?;
    // Answering from a whole range is enough for accepted connections; binding takes an address.
    internet.ip(&["addr", "add", &format!("{DNS_V6}/128"), "dev", "lo", "nodad"])?;
    internet.ip(&["-6", "route", "add", "blackhole", "2001:db8:dead::/48"])
}

/// The names of the small internet.
fn fill(zone: &Zone) {
    zone.set("httpbin.org", &[HTTPBIN]);
    zone.set("www.google.com", &[GOOGLE]);
    zone.set("edition.cnn.com", &[CNN]);
    zone.set("wikipedia.org", &[WIKIPEDIA_EN]);
    zone.set("*.wikipedia.org", &[WIKIPEDIA_EN]);
    zone.set("de.wikipedia.org", &[WIKIPEDIA_DE]);
    zone.set("v4.example.com", &[EXAMPLE_V4]);
    zone.set("v6.example.com", &[EXAMPLE_V6]);
    zone.set("dual.example.com", &[EXAMPLE_V4, EXAMPLE_V6]);
    zone.set("deadv6.example.com", &[EXAMPLE_V4, DEAD_V6]);
}
