//! Masquerading what an isolated namespace sends, with nftables: a table of ours, named for the
//! interceptor.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the file lies that says that there is a table, and holds the resolv.conf of the namespace: it
/// outlives a killed daemon as the table does, and not the machine.
const NOTES: &str = "/run/interceptor";

/// Why addresses are not translated.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// No nftables on this machine.
    #[error("--isolate needs the program nft (package nftables), which is not in PATH")]
    NoProgram,
    /// It said no.
    #[error("--isolate: nftables cannot masquerade the command's addresses: {0}")]
    Refused(String),
    /// Something of the system.
    #[error("--isolate: {what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A table that is in place. Dropped, it goes.
#[derive(Debug)]
pub(super) struct Translation {
    name: String,
}

impl Translation {
    /// Masquerades what comes from `sources` and goes on.
    ///
    /// # Errors
    /// [`NatError`]; there is no table then.
    pub(super) fn set_up(name: &str, sources: &[IpAddr]) -> Result<Self, NatError> {
        let note = note(name);
        let failed = |source| NatError::System { what: note.display().to_string(), source };
        fs::create_dir_all(NOTES).map_err(failed)?;
        // Before the table: what is there is always known of.
        fs::write(&note, "").map_err(failed)?;
        if let Err(error) = nft(&ruleset(name, sources)) {
            // All or none: there is no table.
            let _ = fs::remove_file(&note);
            return Err(error);
        }
        Ok(Self { name: name.to_owned() })
    }

    /// Keeps a text that commands in the namespace find, for as long as the table is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep(&self, text: &str) -> io::Result<PathBuf> {
        let note = note(&self.name);
        fs::write(&note, text)?;
        fs::set_permissions(&note, Permissions::from_mode(0o644))?;
        Ok(note)
    }

    /// Removes the table that a killed interceptor of this name left; whether there was one.
    ///
    /// # Errors
    /// [`NatError`].
    pub(super) fn clean_stale(name: &str) -> Result<bool, NatError> {
        let note = note(name);
        if !note.exists() {
            return Ok(false);
        }
        nft(&removal(name))?;
        fs::remove_file(&note)
            .map_err(|source| NatError::System { what: note.display().to_string(), source })?;
        Ok(true)
    }
}

impl Drop for Translation {
    fn drop(&mut self) {
        if let Err(error) = Self::clean_stale(&self.name) {
            eprintln!(
                "interceptor: {error}; `interceptor detach --name {}` tries again",
                self.name
            );
        }
    }
}

fn note(name: &str) -> PathBuf {
    Path::new(NOTES).join(format!("{name}.resolv.conf"))
}

/// Removes the table, whether it is there or not.
fn removal(name: &str) -> String {
    format!("table inet interceptor-{name}\ndelete table inet interceptor-{name}\n")
}

fn ruleset(name: &str, sources: &[IpAddr]) -> String {
    let rule = |source: &IpAddr| {
        let family = if source.is_ipv4() { "ip" } else { "ip6" };
        format!("    {family} saddr {source} masquerade\n")
    };
    let rules: String = sources.iter().map(rule).collect();
    format!(
        "{}table inet interceptor-{name} {{\n  chain postrouting {{\n    type nat hook postrouting \
         priority srcnat; policy accept;\n{rules}  }}\n}}\n",
        removal(name)
    )
}

/// Has nft take these rules, all or none.
fn nft(rules: &str) -> Result<(), NatError> {
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => NatError::NoProgram,
        _ => NatError::System { what: "running nft".into(), source },
    };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // An early end of nft shows in its status.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    Err(NatError::Refused(first.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_its_predecessor_and_names_each_source() {
        let sources = ["198.19.0.2", "fd69::2"].map(|text| text.parse().expect("an address"));
        let rules = ruleset("a-1", &sources);
        assert!(rules.starts_with(&removal("a-1")), "{rules}");
        assert!(rules.contains("    ip saddr 198.19.0.2 masquerade\n"), "{rules}");
        assert!(rules.contains("    ip6 saddr fd69::2 masquerade\n"), "{rules}");
    }
}
