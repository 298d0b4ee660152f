//! What was attached, one file each: DEL may come when the namespace is gone, and an agent that starts must
//! know the namespaces that were exempted without it before it attaches a hook that would hold them.
//!
//! They lie below /run, which a reboot empties, as it makes namespaces' cookies begin anew. A record says
//! its boot all the same: one of another boot would exempt a stranger.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::call::Attachment;
use crate::admin;
use crate::files::replace;

/// What was decided of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is left alone.
    Exempt,
    /// It is covered, or was to be.
    Covered,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container: String,
    /// The interface's name.
    pub interface: String,
    /// The kernel's number for the network namespace.
    pub cookie: u64,
    /// Its file, as the runtime calls it.
    pub netns: PathBuf,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid, where the runtime said it.
    pub uid: Option<String>,
    /// What was decided.
    pub fate: Fate,
}

#[derive(Serialize, Deserialize)]
struct File {
    boot: String,
    #[serde(flatten)]
    record: Record,
}

/// The records of one instance.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
    boot: String,
}

impl Records {
    /// The name of this boot of the machine.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn boot() -> io::Result<String> {
        Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// Those of instance `name` on this machine, since it was booted.
    pub fn of(name: &str, boot: String) -> Self {
        Self::at(Path::new(admin::DIR).join("cni").join(name), boot)
    }

    /// Those in a directory, of one boot.
    pub(super) fn at(directory: PathBuf, boot: String) -> Self {
        Self { directory, boot }
    }

    /// Writes one, in the place of what was known of this attachment.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        // /run/interceptor is for root only (T-58).
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let file = File { boot: self.boot.clone(), record: record.clone() };
        replace(
            &self.file(&record.container, &record.interface),
            &serde_json::to_vec(&file)?,
            0o600,
        )
    }

    /// The one of an attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<Record> {
        self.read(&self.file(&attachment.container, &attachment.interface))
    }

    /// Removes the one of an attachment, if there is one.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, container: &str, interface: &str) -> io::Result<()> {
        match fs::remove_file(self.file(container, interface)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All of them; what cannot be read is none.
    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        entries.filter_map(|entry| self.read(&entry.ok()?.path())).collect()
    }

    fn read(&self, path: &Path) -> Option<Record> {
        let file: File = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (file.boot == self.boot).then_some(file.record)
    }

    /// No id of a container has a colon.
    fn file(&self, container: &str, interface: &str) -> PathBuf {
        self.directory.join(format!("{container}:{interface}"))
    }
}
