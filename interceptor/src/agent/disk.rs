//! The last good state on disk, so that a node enforces what it enforced although there is no API
//! server: three files of one JSON document a line, `---` between them.
//!
//! `policy.yaml` is a policy file as any other, for `-f`. Secrets go to a directory of their own,
//! which should be in memory: then a key outlives the agent, but not the machine.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::documents::Documents;
use super::kinds::{Kind, Object, Shelf};
use crate::files::replace;

/// Where the state is.
#[derive(Debug, Clone)]
pub struct Disk {
    /// For policy and workloads.
    pub state: PathBuf,
    /// For Secrets.
    pub secrets: PathBuf,
}

/// Mode of every file.
const ROOT_ONLY: u32 = 0o600;

/// The last line of a whole file.
const END: &str = "# end";

/// A state file that is not one.
#[derive(Debug, thiserror::Error)]
pub enum BadState {
    /// It is there and cannot be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is no document, or the end is missing.
    #[error("{}:{line}: not what the agent writes", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

impl Disk {
    fn file(&self, shelf: Shelf) -> PathBuf {
        match shelf {
            Shelf::Policy => self.state.join("policy.yaml"),
            Shelf::Workloads => self.state.join("workloads.yaml"),
            Shelf::Secrets => self.secrets.join("secrets.yaml"),
        }
    }

    /// Writes every file that differs from what is there, each as a whole or not at all.
    ///
    /// # Errors
    /// A file cannot be written; those before it were.
    pub fn write(&self, documents: &Documents) -> Result<(), BadState> {
        for shelf in [Shelf::Secrets, Shelf::Workloads, Shelf::Policy] {
            let file = self.file(shelf);
            let text = format!(
                "# Written by interceptor agent; it is written anew when something changes.\n{}{END}\n",
                documents.text(shelf)
            );
            if fs::read(&file).is_ok_and(|there| there == text.as_bytes()) {
                continue;
            }
            replace(&file, text.as_bytes(), ROOT_ONLY)
                .map_err(|source| BadState::Io { file, source })?;
        }
        Ok(())
    }

    /// Reads what was written; nothing where nothing was.
    ///
    /// # Errors
    /// A file is there and not whole. What is in the others does not count then either.
    pub fn read(&self) -> Result<Vec<(Kind, Object)>, BadState> {
        let mut all = Vec::new();
        for shelf in [Shelf::Policy, Shelf::Workloads, Shelf::Secrets] {
            let file = self.file(shelf);
            match fs::read_to_string(&file) {
                Ok(text) => {
                    let objects = read(&text, shelf);
                    all.extend(objects.map_err(|line| BadState::Line { file, line })?);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(BadState::Io { file, source }),
            }
        }
        Ok(all)
    }
}

/// The objects of one file, or the line that is not as it should be.
fn read(text: &str, shelf: Shelf) -> Result<Vec<(Kind, Object)>, usize> {
    let mut objects = Vec::new();
    let lines = text.lines().count();
    if text.lines().next_back() != Some(END) {
        return Err(lines);
    }
    for (index, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with('#') {
            continue;
        }
        let read = Object::read(line).filter(|(kind, _)| kind.shelf() == shelf);
        objects.push(read.ok_or(index + 1)?);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::super::documents::{Event, Feed};
    use super::super::kinds::Name;
    use super::*;

    fn documents() -> Documents {
        let name = || Name { namespace: "shop".to_owned(), name: "cred".to_owned() };
        let feeds =
            [Feed::all(Kind::ServiceEntry), Feed::all(Kind::Pod), Feed::one(Kind::Secret, name())];
        let mut documents = Documents::new(feeds.clone());
        for feed in feeds {
            let object = json!({"metadata": {"name": "cred", "namespace": "shop"},
                "spec": {"hosts": ["a"]}, "data": {"tls.key": "a2V5"}});
            let object = Object::of(feed.kind, "v1", &object).expect("kept");
            documents.apply(&feed, Event::Put(object));
        }
        documents
    }

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("made");
            path
        };
        let disk = Disk { state: at("state"), secrets: at("secrets") };
        (dir, disk)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_dir, disk) = disk();
        assert!(disk.read().expect("nothing yet").is_empty());
        let documents = documents();
        disk.write(&documents).expect("written");
        let read = disk.read().expect("read");
        let mut again = Documents::new([]);
        for (kind, object) in read {
            let feed = match kind {
                Kind::Secret => Feed::one(kind, object.name.clone()),
                _ => Feed::all(kind),
            };
            again.restore(feed, object);
        }
        for shelf in [Shelf::Policy, Shelf::Secrets, Shelf::Workloads] {
            assert!(!documents.text(shelf).is_empty());
            assert_eq!(again.text(shelf), documents.text(shelf));
        }
    }

    #[test]
    fn keys_are_in_their_own_place_and_roots_alone() {
        let (_dir, disk) = disk();
        disk.write(&documents()).expect("written");
        for file in ["policy.yaml", "workloads.yaml"] {
            let text = fs::read_to_string(disk.state.join(file)).expect("there");
            assert!(!text.contains("a2V5"), "{file}");
        }
        let secrets = disk.secrets.join("secrets.yaml");
        assert!(fs::read_to_string(&secrets).expect("there").contains("a2V5"));
        let mode = fs::metadata(&secrets).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A cut or foreign file is refused: half a policy may allow more than a whole one.
    #[test]
    fn half_a_file_is_no_state() {
        let (_dir, disk) = disk();
        disk.write(&documents()).expect("written");
        let file = disk.state.join("policy.yaml");
        let text = fs::read_to_string(&file).expect("there");
        for bad in [
            "",
            &text[..text.len() / 2],
            text.trim_end_matches("# end\n"),
            &text.replace("ServiceEntry", "Secret"),
            &text.replace("---", "x: y"),
        ] {
            fs::write(&file, bad).expect("written");
            assert!(disk.read().is_err(), "{bad:?}");
        }
        fs::write(&file, &text).expect("written");
        assert_eq!(disk.read().expect("whole").len(), 3);
    }

    #[test]
    fn what_is_the_same_is_not_written_again() {
        use std::os::unix::fs::MetadataExt as _;
        let (_dir, disk) = disk();
        let inode = |name: &str| fs::metadata(disk.state.join(name)).expect("there").ino();
        let mut documents = documents();
        disk.write(&documents).expect("written");
        let before = (inode("policy.yaml"), inode("workloads.yaml"));
        let feed = Feed::all(Kind::ServiceEntry);
        let name = Name { namespace: "shop".to_owned(), name: "cred".to_owned() };
        documents.apply(&feed, Event::Gone(name));
        disk.write(&documents).expect("written");
        assert_ne!(inode("policy.yaml"), before.0);
        assert_eq!(inode("workloads.yaml"), before.1);
    }
}
