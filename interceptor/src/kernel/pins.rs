//! bpffs: where maps and links stay when the daemon dies (R6).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const BPFFS: &str = "/sys/fs/bpf";

/// The pins of one named instance: `/sys/fs/bpf/interceptor/NAME/{maps-vN,links}`.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

/// Why pins could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}")]
pub struct PinError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PinError + 'a {
    move |source| PinError { what, path: path.to_owned(), source }
}

impl Pins {
    /// Where instance `name` pins.
    pub fn of(name: &str) -> Self {
        Self { root: Path::new(BPFFS).join("interceptor").join(name) }
    }

    /// Mounts bpffs if nobody did, and makes the directories (0700).
    ///
    /// # Errors
    /// No privilege, or no bpffs in this kernel.
    pub fn prepare(&self) -> Result<(), PinError> {
        let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !mounted {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .map_err(|e| failed("cannot mount bpffs at", Path::new(BPFFS))(e.into()))?;
        }
        for dir in [self.maps(), self.links()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(failed("cannot make", &dir))?;
        }
        Ok(())
    }

    /// Directory of pinned maps of this version of the contract. Maps of another version have other
    /// layouts and are never opened.
    pub fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}", interceptor_common::VERSION))
    }

    /// Unpins the maps of other versions. To be called once every link runs a program of this one.
    ///
    /// # Errors
    /// No privilege.
    pub fn remove_other_maps(&self) -> Result<(), PinError> {
        let current = self.maps();
        let others = self.map_dirs().into_iter().filter(|dir| *dir != current);
        others.into_iter().try_for_each(|dir| remove_dir(&dir))
    }

    /// The map directories of every version.
    fn map_dirs(&self) -> Vec<PathBuf> {
        let all = names(&self.root).into_iter().filter(|name| name.starts_with("maps"));
        all.map(|name| self.root.join(name)).collect()
    }

    /// Directory of pinned links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether anything is pinned.
    pub fn exist(&self) -> bool {
        self.root.exists()
    }

    /// Every pinned link, by file name.
    pub fn link_names(&self) -> Vec<String> {
        names(&self.links())
    }

    /// Unpins everything: links first, so that no program runs on maps that are going. A link
    /// that nobody holds open is detached by this.
    ///
    /// # Errors
    /// No privilege.
    pub fn remove(&self) -> Result<(), PinError> {
        remove_dir(&self.links())?;
        self.map_dirs().iter().try_for_each(|dir| remove_dir(dir))?;
        remove_dir(&self.root)?;
        // The last instance takes the common directory along.
        if let Some(common) = self.root.parent() {
            let _ = fs::remove_dir(common);
        }
        Ok(())
    }
}

/// Removes a directory with the pins in it, if it is there.
fn remove_dir(dir: &Path) -> Result<(), PinError> {
    for name in names(dir) {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(failed("cannot unpin", &path))?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", dir)(e)),
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
