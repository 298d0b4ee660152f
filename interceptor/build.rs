//! Puts the BPF object where `kernel/object.rs` embeds it from.
//!
//! `cargo xtask build` compiles the kernel side and leaves it at the default path below, so a plain
//! `cargo build` afterwards embeds the same bytes and rebuilds nothing. Where there is no object yet
//! (a first `cargo check`, an editor), an empty one is embedded: everything compiles, and the binary
//! says at start what it lacks.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Names another object to embed, for packagers who build the kernel side themselves.
const OBJECT_VARIABLE: &str = "INTERCEPTOR_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");

    let object = match env::var_os(OBJECT_VARIABLE).filter(|path| !path.is_empty()) {
        Some(named) => PathBuf::from(named),
        None => default_object()?,
    };
    println!("cargo:rerun-if-changed={}", object.display());

    let embedded = Path::new(&env::var("OUT_DIR")?).join("interceptor.bpf.o");
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        println!("cargo:warning={}: {error}; no BPF object is embedded", object.display());
        Vec::new()
    });
    fs::write(embedded, bytes)?;
    Ok(())
}

/// Where `cargo xtask build` leaves the object. Made empty if absent: cargo takes a missing file for
/// a changed one, and would compile this crate anew on every call.
fn default_object() -> Result<PathBuf, Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("the crate has no parent directory")?;
    let object = workspace.join("target/bpf/interceptor.bpf.o");
    if let (false, Some(directory)) = (object.exists(), object.parent()) {
        // Best effort: a read-only tree still builds, only less often from cache.
        let _ = fs::create_dir_all(directory).and_then(|()| fs::write(&object, []));
    }
    Ok(object)
}
