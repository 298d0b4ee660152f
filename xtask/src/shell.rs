//! Calling other programs: without this process' own cargo environment, and with their failures told.

use std::ffi::{OsStr, OsString};
use std::fmt::{Arguments, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use anyhow::{Context, Result, bail};

/// Prints one line for people, on stderr: stdout belongs to what is run.
pub(crate) fn say(line: Arguments<'_>) {
    eprintln!("xtask: {line}");
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // The crate lies in the root; a path baked in at compile time is right as long as the binary is.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `PROGRAM`, run in the repository's root, without what `cargo run` put into our environment.
///
/// Left in, those variables (CARGO_PKG_NAME and its like) differ between `cargo xtask build` and a
/// plain `cargo build`, and build scripts that watch them would run, and rebuild, every time.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if is_cargos_own(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    match library_path() {
        Some(path) => command.env("LD_LIBRARY_PATH", path),
        None => command.env_remove("LD_LIBRARY_PATH"),
    };
    command
}

/// The cargo that runs us, with the user's own compiler choice: for the user-space crates.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The object and the binaries are looked for where the documentation says they are.
    cargo.arg(subcommand).env("CARGO_TARGET_DIR", root().join("target"));
    cargo
}

/// What cargo sets for the programs it runs; settings of the user's (CARGO_HOME, CARGO_NET_…) stay.
fn is_cargos_own(name: &str) -> bool {
    const EXACT: [&str; 5] =
        ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR", "OUT_DIR"];
    const PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The user's LD_LIBRARY_PATH: ours without the entries that cargo put before it.
fn library_path() -> Option<OsString> {
    let path = env::var_os("LD_LIBRARY_PATH")?;
    let target = root().join("target");
    let kept: Vec<PathBuf> = env::split_paths(&path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .filter(|entry| !entry.starts_with(&target) && !entry.join("rustlib").is_dir())
        .collect();
    if kept.is_empty() { None } else { env::join_paths(kept).ok() }
}

/// Runs it; anything but exit status 0 is an error that says what was run.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let shown = Shown(command).to_string();
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// What it prints, or `None` when it is absent or fails: for questions, not for work.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is: on PATH, or where system programs are though a user's PATH may omit it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|path| is_executable(path))
}

/// PATH, completed by the directories of the system's programs (`ip`, `bpftool`).
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    for system in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !dirs.iter().any(|dir| dir == Path::new(system)) {
            dirs.push(system.into());
        }
    }
    env::join_paths(dirs).unwrap_or(path)
}

pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Are we root already?
pub(crate) fn is_root() -> bool {
    // The effective uid is the second number of the line; no procfs reads as "not root".
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    uids.split_whitespace().nth(1) == Some("0")
}

/// Is a person there to answer a question?
pub(crate) fn on_terminal() -> bool {
    use io::IsTerminal as _;
    io::stdin().is_terminal() && io::stderr().is_terminal() && env::var_os("CI").is_none()
}

/// `PROGRAM` as root: as it is if we are root, else through sudo, whose purpose `why` is said.
///
/// # Errors
/// When we are not root and there is no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    let Some(sudo) = find("sudo") else {
        bail!("root is needed to {why}, and there is no sudo here: run this as root");
    };
    say(format_args!("using sudo to {why}"));
    let mut root = command(sudo);
    if !on_terminal() {
        root.arg("--non-interactive");
    }
    // sudo replaces PATH even with -E, and the command to run is to be found where the user finds it.
    let mut path = OsString::from("PATH=");
    path.push(search_path());
    root.args(["--preserve-env", "--", "/usr/bin/env"]).arg(path).arg(program);
    Ok(root)
}

/// A command as one would type it.
pub(crate) struct Shown<'a>(pub &'a Command);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Path::new(self.0.get_program()).display())?;
        for arg in self.0.get_args() {
            let arg = arg.to_string_lossy();
            if arg.is_empty() || arg.contains(|c: char| c.is_whitespace() || "'\"*$;".contains(c)) {
                write!(f, " '{}'", arg.replace('\'', r"'\''"))?;
            } else {
                write!(f, " {arg}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_own_variables_go_and_the_users_stay() {
        for own in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
            assert!(is_cargos_own(own), "{own} must not reach the inner cargo");
        }
        for users in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_BUILD_JOBS", "RUSTFLAGS", "PATH"] {
            assert!(!is_cargos_own(users), "{users} is the user's setting");
        }
    }

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("curl");
        command.args(["-H", "Host: a b", "it's", "plain"]);
        assert_eq!(Shown(&command).to_string(), r"curl -H 'Host: a b' 'it'\''s' plain");
    }

    #[test]
    fn system_programs_are_found_without_sbin_in_path() {
        let dirs: Vec<PathBuf> = env::split_paths(&search_path()).collect();
        assert!(dirs.contains(&PathBuf::from("/usr/sbin")));
    }
}
