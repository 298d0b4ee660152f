//! Loading: what is accepted, what is said, and the exact words and places of every refusal.

mod definition;
mod loading;
mod malformed;
mod mesh;
mod parts;
mod reload;
mod telemetry;
mod validation;

use std::path::Path;

use super::*;

/// Writes `text` as `p.yaml` and loads it; paths in messages are cut to the file's name.
pub(super) fn load_text(text: &str, enforcement: Enforcement) -> Result<Loaded, Vec<String>> {
    load_from(text, |file| Sources {
        files: vec![file],
        enforcement: Some(enforcement),
        ..Sources::default()
    })
}

/// The same as a mesh configuration.
pub(super) fn load_mesh(text: &str, enforcement: Enforcement) -> Result<Loaded, Vec<String>> {
    load_from(text, |file| Sources {
        mesh_config: Some(file),
        enforcement: Some(enforcement),
        ..Sources::default()
    })
}

fn load_from(
    text: &str,
    sources: impl FnOnce(std::path::PathBuf) -> Sources,
) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, text).expect("written");
    match load(&sources(file), &Caller::new("default")) {
        Ok(mut loaded) => {
            for notice in loaded.warnings.iter_mut().chain(&mut loaded.rejected) {
                notice.place.file = "p.yaml".into();
            }
            Ok(loaded)
        }
        Err(errors) => Err(lines(&errors, dir.path())),
    }
}

/// The lines of an error as people see them.
pub(super) fn lines(errors: &LoadErrors, dir: &Path) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    errors.to_string().lines().map(|line| line.replace(&prefix, "")).collect()
}

pub(super) fn texts(notices: &[Notice]) -> Vec<String> {
    notices.iter().map(ToString::to_string).collect()
}
