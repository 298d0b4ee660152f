//! `interceptor cni`: environment and standard streams around the plugin. And putting it in its place.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::{env, io};

use crate::cli::{self, Exit};
use crate::cni::{InstallError, Installer, Machine, Outcome, Records, Settings, act};

/// The longest configuration that is read, in bytes.
const MOST_INPUT: u64 = 4 << 20;

pub(super) fn run() -> Exit {
    match read().and_then(|input| print(&answer(&input)?)) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("interceptor-cni: {error}");
            Exit::Failure
        }
    }
}

fn read() -> io::Result<Vec<u8>> {
    let mut input = Vec::new();
    io::stdin().lock().take(MOST_INPUT).read_to_end(&mut input)?;
    Ok(input)
}

fn answer(input: &[u8]) -> io::Result<Outcome> {
    let boot = Records::boot()?;
    let place =
        |settings: &Settings| (Machine::of(settings), Records::of(&settings.instance, boot));
    Ok(act(|name| env::var(name).ok(), input, place))
}

fn print(outcome: &Outcome) -> io::Result<Exit> {
    for note in &outcome.notes {
        eprintln!("interceptor-cni: {note}");
    }
    if let Some(said) = &outcome.said {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, said)?;
        writeln!(out)?;
    }
    Ok(if outcome.done { Exit::Success } else { Exit::Failure })
}

/// Sees to it that the plugin is where the agent's arguments want it.
pub(super) struct Keeper {
    installer: Installer,
    /// What was said last.
    said: Option<String>,
}

impl Keeper {
    /// Nothing where the arguments don't want it.
    pub(super) fn new(args: &cli::Agent) -> Option<Self> {
        let settings = Settings {
            instance: args.name.clone(),
            exempt_namespaces: args.cni_exempt.iter().cloned().collect(),
            default_mode: args.default_mode,
            cgroup_root: args.cgroup_root.clone(),
            ..Settings::default()
        };
        let (networks, binaries) = (args.cni_conf_dir.as_ref()?, args.cni_bin_dir.as_ref()?);
        let installer = installer(networks, binaries, settings);
        Some(Self { installer, said: None })
    }

    /// Puts it there, unless it is. What hinders it is said once.
    pub(super) fn keep(&mut self) {
        if self.installer.is_installed() {
            return;
        }
        let said = match self.installer.install() {
            Ok(file) => format!("the CNI plugin is in {}", file.display()),
            Err(error) => {
                format!(
                    "warning: the CNI plugin is not installed, so pods start before they are covered: {error}"
                )
            }
        };
        if self.said.as_ref() != Some(&said) {
            eprintln!("interceptor: {said}");
            self.said = Some(said);
        }
    }
}

/// Takes the plugin of instance `name` out of its places.
pub(super) fn remove(name: &str, networks: &Path, binaries: &Path) -> Result<(), InstallError> {
    let in_use = Records::boot().is_ok_and(|boot| !Records::of(name, boot).all().is_empty());
    installer(networks, binaries, Settings::default()).remove(in_use)
}

fn installer(networks: &Path, binaries: &Path, settings: Settings) -> Installer {
    Installer {
        binaries: binaries.to_owned(),
        networks: networks.to_owned(),
        own: "/proc/self/exe".into(),
        settings,
    }
}
