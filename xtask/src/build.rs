//! `cargo xtask build`: the kernel side, then user space with it inside.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::install::Install;
use crate::shell::{cargo, check, root, say};
use crate::toolchain::{self, BPF_TARGET, Toolchain};

/// Build both sides, and leave target/debug/interceptor (or target/release)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build with optimisations
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(args.release);
    kernel_side(&toolchain::set_up(&args.install)?)?;
    user_space(profile, &[Package::Interceptor])?;
    let binary = profile.binary("interceptor");
    say(format_args!("built {}", binary.strip_prefix(root()).unwrap_or(&binary).display()));
    Ok(())
}

/// How user space is compiled. The kernel side is always optimised: the verifier asks for it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// What a release build is made of; a debug build is always of everything, see [`select_all`].
#[derive(Clone, Copy)]
pub(crate) enum Package {
    Interceptor,
    Walkthrough,
    Bench,
}

impl Profile {
    pub(crate) fn new(release: bool) -> Self {
        if release { Self::Release } else { Self::Debug }
    }

    /// Where the build leaves the binary of this name.
    pub(crate) fn binary(self, name: &str) -> PathBuf {
        let directory = match self {
            Self::Debug => "target/debug",
            Self::Release => "target/release",
        };
        root().join(directory).join(name)
    }
}

/// Compiles the BPF object and leaves it at target/bpf/interceptor.bpf.o, where interceptor's build
/// script looks. The file is touched only when its bytes change, so that nothing rebuilds for nothing.
pub(crate) fn kernel_side(toolchain: &Toolchain) -> Result<()> {
    let target = root().join("target/bpf");
    let mut cargo = toolchain.compiler.cargo("build");
    cargo.args(["--release", "--target-dir"]).arg(&target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&toolchain.linker.path).join("\x1f"));
    // Link-time optimisation is bpf-linker's work; the profile's is for user space.
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "false");
    check(&mut cargo).context("the kernel side does not compile")?;

    let built = target.join(BPF_TARGET).join("release/interceptor-ebpf");
    let object = target.join("interceptor.bpf.o");
    let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
    if fs::read(&object).is_ok_and(|before| before == bytes) {
        return Ok(());
    }
    // Renamed into place: an interrupted copy must not be embedded.
    let partial = target.join("interceptor.bpf.o.new");
    fs::write(&partial, bytes).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, &object).with_context(|| object.display().to_string())
}

/// rustc's flags for the kernel side: link with `linker`, and keep the types (BTF) that the kernel
/// wants to see.
pub(crate) fn flags(linker: &Path) -> Vec<String> {
    vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
    ]
}

/// Compiles user space, which embeds the object that [`kernel_side`] left.
pub(crate) fn user_space(profile: Profile, packages: &[Package]) -> Result<()> {
    let mut cargo = cargo("build");
    match profile {
        Profile::Debug => select_all(&mut cargo),
        Profile::Release => {
            cargo.arg("--release");
            for package in packages {
                cargo.args(match package {
                    Package::Interceptor => ["--package", "interceptor"],
                    Package::Walkthrough => ["--package", "interceptor-tests"],
                    Package::Bench => ["--package", "interceptor-bench"],
                });
            }
        }
    }
    check(own_object(&mut cargo))
}

/// Selects all of user space but this program. Always the same selection, because cargo unites the
/// features of what is selected: another one would compile the dependencies a second time.
pub(crate) fn select_all(cargo: &mut Command) {
    cargo.args(["--workspace", "--exclude", "interceptor-ebpf", "--exclude", "xtask"]);
}

/// Has the object embedded that was built here, whatever the environment names.
pub(crate) fn own_object(cargo: &mut Command) -> &mut Command {
    cargo.env_remove("INTERCEPTOR_BPF_OBJECT").arg("--locked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_side_flags_keep_types_and_name_the_architecture() {
        let flags = flags(Path::new("/opt/bpf linker"));
        assert!(flags.contains(&"-Clinker=/opt/bpf linker".to_owned()));
        assert!(flags.contains(&"-Clink-arg=--btf".to_owned()));
        assert!(flags.iter().any(|flag| flag.starts_with("--cfg=bpf_target_arch=\"")));
    }

    #[test]
    fn binaries_are_where_the_readme_says() {
        assert!(Profile::new(false).binary("interceptor").ends_with("target/debug/interceptor"));
        assert!(Profile::new(true).binary("interceptor").ends_with("target/release/interceptor"));
    }
}
