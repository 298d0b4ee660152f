//! `cargo xtask lint`: formatting and clippy, both sides; the fuzz targets' lock file.

use std::path::Path;

use anyhow::Result;

use crate::build;
use crate::install::Install;
use crate::shell::{answer, cargo, check, command, is_executable, root, say};
use crate::toolchain::{self, Kind, Toolchain};

/// Check formatting and run clippy on both sides, warnings forbidden
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check(cargo("fmt").args(["--all", "--check"]))?;
    let mut clippy = cargo("clippy");
    clippy.args(["--locked", "--workspace", "--exclude", "interceptor-ebpf", "--all-targets"]);
    check(clippy.args(["--", "--deny", "warnings"]))?;
    // A workspace of its own, whose lock file nothing else looks at.
    check(cargo("fetch").args(["--locked", "--manifest-path", "tests/fuzz/Cargo.toml"]))?;
    kernel_side(&toolchain::set_up(&args.install)?)
}

/// Clippy where the compiler of the kernel side has it, else the compiler's own warnings.
fn kernel_side(toolchain: &Toolchain) -> Result<()> {
    let has_clippy = match &toolchain.compiler.kind {
        Kind::Rustup(name) => {
            answer(command("rustup").args(["run", name, "cargo", "clippy", "--version"])).is_some()
        }
        Kind::System => is_executable(Path::new("/usr/bin/clippy-driver")),
    };
    if !has_clippy {
        say(format_args!("the kernel side's compiler has no clippy: its own warnings are checked"));
    }
    let mut cargo = toolchain.compiler.cargo(if has_clippy { "clippy" } else { "check" });
    let mut flags = build::flags(&toolchain.linker.path);
    flags.push("-Dwarnings".into());
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // Beside the build's: other flags in the same directory would make each undo the other's work.
    check(cargo.arg("--target-dir").arg(root().join("target/bpf/lint")))
}
