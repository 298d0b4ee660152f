//! Where it happens: a world, a covered workload that does everything in [`load`](super::load), a log on
//! a small disk of its own, and the capture at the far side.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::lines::Lines;
use super::load::{self, BYPASS, Kind, STEADY};
use super::{Breakage, Options};
use crate::capture::Capture;
use crate::cgroup::Cgroup;
use crate::dweller::Dweller;
use crate::ongoing::Ongoing;
use crate::product::{Interceptor, Running};
use crate::world::{self, World};

/// The disk that the access log is on.
const DISK: &str = "size=64m";
/// Between two exchanges of each kind: load, but not a flood.
const PAUSE: &str = "40";
/// How long a daemon may take to be in another's place.
const START: Duration = Duration::from_secs(30);
/// How long one may drain whose connections all end by themselves: its `--drain-time` is 45 s.
const DRAINED: Duration = Duration::from_secs(30);
/// How long a change of a file, or a repair, may take.
pub const SOON: Duration = Duration::from_secs(5);

/// What outlives the product. The product borrows it.
#[derive(Debug)]
pub struct Ground {
    // Dropped in this order.
    cgroup: Cgroup,
    disk: Disk,
    /// The small internet.
    pub world: World,
}

impl Ground {
    /// # Errors
    /// When a namespace, cgroup or mount can't be made.
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        load::name_all(&world);
        let disk = Disk::mount(&world.dir().join("log"))?;
        Ok(Self { cgroup: Cgroup::create("torture")?, disk, world })
    }
}

/// A small tmpfs. Dropping it unmounts it.
#[derive(Debug)]
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Result<Self> {
        fs::create_dir(at)?;
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(DISK))
            .with_context(|| format!("a tmpfs on {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// The product at work, and what looks at it.
#[derive(Debug)]
pub struct Stage<'g> {
    // Dropped in this order: who sends, then the product.
    /// The workload.
    pub inside: Dweller,
    /// The product.
    pub running: Running<'g>,
    /// What nobody allowed and yet arrived.
    pub capture: Capture,
    /// The access log.
    pub lines: Lines,
    /// Lines of the log before the running daemon was started; `None` where another one, whose place it
    /// took, wrote lines beside it.
    pub lines_before: Option<u64>,
    /// The ground that it stands on.
    pub ground: &'g Ground,
    client: String,
    generation: u64,
    open: bool,
}

impl<'g> Stage<'g> {
    /// Starts everything.
    ///
    /// # Errors
    /// When something doesn't start.
    pub fn start(ground: &'g Ground, options: &Options) -> Result<Self> {
        let world = &ground.world;
        let open = options.breakage == Some(Breakage::Policy);
        let policy = world.file("policy.yaml", &load::policy(1, open))?;
        let log = ground.disk.0.join("access.log");
        let bypass: Vec<_> = BYPASS.split(',').flat_map(|network| ["--bypass", network]).collect();
        let flags = [&["--outbound", "registry-only", "-f", &policy], &bypass[..]].concat();
        let product = Interceptor::new(world, &options.interceptor, &flags).log(&log);
        let running = product.cover(ground.cgroup.path())?;
        running.wait_for_status()?;
        let capture = Capture::keeping(&world.internet, load::is_forbidden)?;
        let client = options.client.to_string_lossy().into_owned();
        let inside = dwell(ground, &client, &STEADY, &[])?;
        let lines = Lines::of(&log);
        Ok(Self {
            inside,
            running,
            capture,
            lines,
            lines_before: Some(0),
            ground,
            client,
            generation: 1,
            open,
        })
    }

    /// The workload begins anew: something that it was to keep is gone.
    ///
    /// # Errors
    /// When it can't connect.
    pub fn begin_anew(&mut self) -> Result<()> {
        self.inside = dwell(self.ground, &self.client, &STEADY, &[])?;
        Ok(())
    }

    /// A second workload in the same cgroup, that does each of these `times` and ends.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn some(&self, kinds: &[Kind], times: u64) -> Result<Dweller> {
        dwell(self.ground, &self.client, kinds, &["--times", &times.to_string()])
    }

    /// So many connections of one manner (see [`crate::client::Manner`]), which the workload holds in its
    /// hands too.
    ///
    /// # Errors
    /// When they can't be started.
    pub fn crowd(&self, manner: &str, count: usize) -> Result<Ongoing> {
        let to = if manner == "hello" { "203.0.113.77:443" } else { "203.0.113.78:80" };
        let count = count.to_string();
        let program = [&self.client, "crowd", to, "--count", &count, "--manner", manner];
        let mut shell = self.ground.world.command("sh");
        self.ground.cgroup.command(&mut shell, &program);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Ongoing::from(self.ground.world.spawn(&mut shell)?))
    }

    /// Kills the daemon.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }

    /// Starts the daemon that was killed, or died, again, and does not wait for it.
    ///
    /// # Errors
    /// When the program can't be started, or the log not be read.
    pub fn start_again(&mut self) -> Result<()> {
        // What a daemon counts begins at nothing.
        self.lines.follow()?;
        self.lines_before = Some(self.lines.total());
        let command = self.running.cover_command(self.ground.cgroup.path());
        self.running.start_again(command).map(drop)
    }

    /// Has a new daemon take the place of the running one, and waits until that has drained; how long
    /// the first and the second took.
    ///
    /// # Errors
    /// When the new one is not in place in time, or the old one does not end as it should.
    pub fn upgrade(&mut self) -> Result<[Duration; 2]> {
        let mut command = self.running.cover_command(self.ground.cgroup.path());
        command.arg("--take-over");
        let begun = Instant::now();
        self.lines_before = None;
        let mut old = self.running.start_again(command)?;
        while self.status_number("/pid")? != u64::from(self.running.pid()) {
            if begun.elapsed() > START {
                old.kill()?;
                old.wait()?;
                bail!("the new daemon is not in place after {START:?}: {}", self.running.stderr()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let in_place = begun.elapsed();
        let ended = world::wait(&mut old, DRAINED)?;
        if ended.is_none() {
            old.kill()?;
            old.wait()?;
        }
        ensure!(
            ended.is_some_and(|status| status.success()),
            "the old daemon ended with {ended:?}"
        );
        Ok([in_place, begun.elapsed() - in_place])
    }

    /// Writes the next generation of policy; its text is left in place of what was there.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_policy(&mut self) -> Result<()> {
        self.generation += 1;
        self.write_as_policy(&load::policy(self.generation, self.open))
    }

    /// Writes this in the place of policy, at once.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_as_policy(&self, text: &str) -> Result<()> {
        let (path, fresh) =
            ["policy.yaml", "policy.new"].map(|n| self.ground.world.dir().join(n)).into();
        fs::write(&fresh, text)?;
        Ok(fs::rename(&fresh, &path)?)
    }

    /// Waits until a number in `status` is more than `before`.
    ///
    /// # Errors
    /// When it is not [`SOON`].
    pub fn until_more(&self, pointer: &str, before: u64) -> Result<u64> {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.running.status()?;
            let now = number(&status, pointer)?;
            if now > before {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "{pointer} is still {now} after {SOON:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A number in `status`, by its JSON pointer.
    ///
    /// # Errors
    /// When there is none.
    pub fn status_number(&self, pointer: &str) -> Result<u64> {
        number(&self.running.status()?, pointer)
    }

    /// Whether each kind that needs no daemon goes on now.
    ///
    /// # Errors
    /// With the first that does not.
    pub fn kernel_goes_on(&self) -> Result<()> {
        self.go_on(&self.of_the_kernel())
    }

    /// Whether these go on now.
    ///
    /// # Errors
    /// With the first that does not.
    pub fn go_on(&self, kinds: &[&Kind]) -> Result<()> {
        for kind in kinds {
            self.inside.goes_on(&kind.key(), SOON).context(kind.name)?;
        }
        Ok(())
    }

    fn of_the_kernel(&self) -> Vec<&'static Kind> {
        STEADY.iter().filter(|kind| kind.needs == load::Needs::Kernel).collect()
    }

    /// The kinds that need no daemon from now on. TLS is among them where the log says that it goes direct:
    /// after a name had no addresses, or the kernel no room, it is the proxy's for a while.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn without_daemon(&mut self) -> Result<Vec<&'static Kind>> {
        let mut kinds = self.of_the_kernel();
        let Some(tls) = kinds.iter().position(|kind| kind.option == "--hello") else {
            return Ok(kinds);
        };
        let to = kinds[tls].to();
        self.lines.follow()?;
        let (before, deadline) = (self.lines.direct(to), Instant::now() + SOON);
        while self.lines.direct(to) == before {
            if Instant::now() > deadline {
                kinds.remove(tls);
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            self.lines.follow()?;
        }
        Ok(kinds)
    }

    /// Fills the disk that the log is on; what to remove in order to end that.
    ///
    /// # Errors
    /// When it takes nothing at all.
    pub fn fill_disk(&self) -> Result<Filler> {
        let path = self.ground.disk.0.join("filler");
        let filler = Filler(path.clone());
        let zeros = fs::File::open("/dev/zero")?;
        // It ends when nothing more fits.
        let full = std::io::copy(
            &mut std::io::BufReader::with_capacity(4096, zeros),
            &mut fs::File::create(&path)?,
        );
        ensure!(
            full.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC)),
            "the disk is not full"
        );
        Ok(filler)
    }

    /// Sets a limit of the daemon: `prlimit --pid PID --WHAT=SOFT:`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn limit(&self, what: &str, soft: &str) -> Result<()> {
        let pid = self.running.pid().to_string();
        let done = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--{what}={soft}:")])
            .output()
            .context("running prlimit (package util-linux)")?;
        ensure!(done.status.success(), "prlimit: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// The workload's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.ground.cgroup
    }

    /// The name of a hook's pin without its cgroup, of those on the workload's cgroup.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn own_hook<'n>(&self, pin: &'n str) -> Result<Option<&'n str>> {
        let id = fs::metadata(self.ground.cgroup.path())?.ino();
        Ok(pin.strip_suffix(&format!("-{id}")))
    }
}

/// A file that fills a disk. Dropping it removes it.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn number(status: &Value, pointer: &str) -> Result<u64> {
    let value = status.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("no number {pointer} in {status}"))
}

fn dwell(ground: &Ground, client: &str, kinds: &[Kind], more: &[&str]) -> Result<Dweller> {
    let what = [&load::options(kinds)[..], &["--pause", PAUSE], more].concat();
    let world = &ground.world;
    Dweller::start(world, &world.workload, Some(&ground.cgroup), client, &what)
}
