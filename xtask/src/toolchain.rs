//! What compiles the kernel side on this machine.
//!
//! Two kinds of machine are known. An ordinary one has rustup with a nightly and its `rust-src`, from
//! which cargo builds `core` for BPF. A machine on which rustup can download nothing (build farms)
//! has distribution packages instead: a rustc that knows the BPF target, with `core` prebuilt. Both
//! link with bpf-linker, whose LLVM must be able to read what the compiler's LLVM wrote.
//!
//! Looking costs a few short calls, so every command looks anew and nothing about the machine is
//! cached: what is said is what is there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::Result;

use crate::install::{self, Install};
use crate::shell::{answer, command, find, is_executable, root, say};

/// The target triple of the kernel side: little endian, as are the machines that are supported.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// The bpf-linker that is installed where none is found; older ones are not taken.
pub(crate) const LINKER_VERSION: (u32, u32, u32) = (0, 13, 0);

/// Where the distribution's own compiler is, as opposed to rustup's on PATH.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";

/// A compiler for the kernel side, and how it is called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiler {
    pub kind: Kind,
    /// "1.96.0"
    pub version: String,
    /// The major version of its LLVM, 22.
    pub llvm: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// rustup's toolchain of this name, which has `rust-src`.
    Rustup(String),
    /// The distribution's rustc and cargo, with `core` for BPF.
    System,
}

/// A bpf-linker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linker {
    pub path: PathBuf,
    pub version: (u32, u32, u32),
    /// The major version of its LLVM; `None` where it is linked in and can't be told.
    pub llvm: Option<u32>,
}

/// All that is needed to build the kernel side.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub compiler: Compiler,
    pub linker: Linker,
}

impl Linker {
    fn suits(&self, compiler: &Compiler) -> bool {
        self.reads(compiler.llvm)
    }

    /// Is it new enough, and does its LLVM read bitcode of this one? LLVM reads older bitcode, never
    /// newer.
    fn reads(&self, llvm: u32) -> bool {
        self.version >= LINKER_VERSION && self.llvm.is_none_or(|own| own >= llvm)
    }
}

impl Compiler {
    /// `cargo SUBCOMMAND` for the kernel side with this compiler: only the BPF crate, in its own
    /// target directory, and with nothing of the outer cargo's settings.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = match &self.kind {
            Kind::Rustup(toolchain) => {
                let mut rustup = command("rustup");
                rustup.args(["run", toolchain, "cargo", subcommand, "-Z", "build-std=core"]);
                rustup
            }
            Kind::System => {
                let mut cargo = command(SYSTEM_CARGO);
                cargo.arg(subcommand);
                cargo
            }
        };
        for (name, _) in env::vars_os() {
            if steers_the_compiler(&name.to_string_lossy()) {
                cargo.env_remove(&name);
            }
        }
        if self.kind == Kind::System {
            // A stable compiler; aya-ebpf uses inline assembly for BPF, which is still unstable.
            cargo.env("RUSTC", SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
        cargo.env_remove("LD_LIBRARY_PATH");
        cargo.args(["--locked", "--package", "interceptor-ebpf", "--target", BPF_TARGET]);
        cargo
    }
}

/// Would this variable, meant for the user-space build, change how the kernel side is compiled?
fn steers_the_compiler(name: &str) -> bool {
    const EXACT: [&str; 4] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTC"];
    const PREFIXES: [&str; 5] =
        ["RUSTC_", "CARGO_BUILD_", "CARGO_TARGET_", "CARGO_PROFILE_", "CARGO_UNSTABLE_"];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compiler { kind, version, llvm } = &self.compiler;
        match kind {
            Kind::Rustup(name) => write!(f, "rustup's {name} with rust-src ({version}")?,
            Kind::System => write!(f, "the distribution's rustc with core for BPF ({version}")?,
        }
        let (major, minor, patch) = self.linker.version;
        write!(f, ", LLVM {llvm}), bpf-linker {major}.{minor}.{patch} (LLVM ")?;
        match self.linker.llvm {
            Some(llvm) => write!(f, "{llvm})"),
            None => f.write_str("built in)"),
        }
    }
}

/// The set-up that every command begins with: says what the machine builds with, in one line, after
/// having installed what was missing.
///
/// # Errors
/// When something is missing and can't be, or may not be, installed; the message says what to type.
pub(crate) fn set_up(allowed: &Install) -> Result<Toolchain> {
    let toolchain = match look() {
        Some(toolchain) if install::missing_programs().is_empty() => toolchain,
        _ => install::complete(allowed)?,
    };
    say(format_args!("kernel side: {toolchain}"));
    Ok(toolchain)
}

/// A compiler of this machine together with a linker that suits it.
pub(crate) fn look() -> Option<Toolchain> {
    let linkers = linkers();
    compilers().into_iter().find_map(|compiler| {
        let linker = linkers.iter().find(|linker| linker.suits(&compiler))?.clone();
        Some(Toolchain { compiler, linker })
    })
}

/// The compilers of this machine that can compile for BPF, the preferred one first.
pub(crate) fn compilers() -> Vec<Compiler> {
    rustup_compilers().into_iter().chain(system_compiler()).collect()
}

/// The nightly that is installed where there is none: a dated one, so that its LLVM is known to be
/// one that bpf-linkers read, and so that the user's own `nightly` stays as it is.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// Names the rustup toolchain to use instead of those looked for.
const TOOLCHAIN_VARIABLE: &str = "INTERCEPTOR_BPF_TOOLCHAIN";

fn rustup_compilers() -> Vec<Compiler> {
    if find("rustup").is_none() {
        return Vec::new();
    }
    match env::var(TOOLCHAIN_VARIABLE) {
        Ok(named) => rustup_compiler(&named).into_iter().collect(),
        Err(_) => ["nightly", NIGHTLY].into_iter().filter_map(rustup_compiler).collect(),
    }
}

fn rustup_compiler(name: &str) -> Option<Compiler> {
    let rustc = |argument: &[&str]| {
        let mut rustup = command("rustup");
        // A question must not start a download.
        rustup.env("RUSTUP_AUTO_INSTALL", "0").args(["run", name, "rustc"]).args(argument);
        answer(&mut rustup)
    };
    let sysroot = rustc(&["--print", "sysroot"])?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !source.is_dir() {
        return None;
    }
    compiler(Kind::Rustup(name.to_owned()), &rustc(&["-vV"])?)
}

fn system_compiler() -> Option<Compiler> {
    if !is_executable(Path::new(SYSTEM_CARGO)) {
        return None;
    }
    let rustc = |argument: &[&str]| answer(command(SYSTEM_RUSTC).args(argument));
    let libraries = rustc(&["--print", "target-libdir", "--target", BPF_TARGET])?;
    let has_core = fs::read_dir(libraries.trim()).ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    });
    if !has_core {
        return None;
    }
    compiler(Kind::System, &rustc(&["-vV"])?)
}

/// Reads `rustc -vV`.
fn compiler(kind: Kind, verbose_version: &str) -> Option<Compiler> {
    let field = |name: &str| verbose_version.lines().find_map(|line| line.strip_prefix(name));
    let version = field("release: ")?.trim().to_owned();
    let llvm = field("LLVM version: ")?.trim().split('.').next()?.parse().ok()?;
    Some(Compiler { kind, version, llvm })
}

/// Where this repository keeps the tools that it builds for itself.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// The bpf-linkers of this machine: the repository's own, then PATH's.
fn linkers() -> Vec<Linker> {
    let own = tools().join("bin/bpf-linker");
    let own = is_executable(&own).then_some(own);
    own.into_iter().chain(find("bpf-linker")).filter_map(linker).collect()
}

/// Is there a linker that reads bitcode of this LLVM?
pub(crate) fn has_linker(llvm: u32) -> bool {
    linkers().iter().any(|linker| linker.reads(llvm))
}

fn linker(path: PathBuf) -> Option<Linker> {
    let version = answer(command(&path).arg("--version"))?;
    let libraries = answer(command("ldd").arg(&path)).unwrap_or_default();
    Some(Linker { version: linker_version(&version)?, llvm: shared_llvm(&libraries), path })
}

/// Reads "bpf-linker 0.13.0".
fn linker_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Finds the LLVM among the shared libraries that `ldd` lists: "libLLVM.so.22.1 => …" is 22, and so
/// are "libLLVM-22.so" and "libLLVM-22.so.1".
fn shared_llvm(ldd: &str) -> Option<u32> {
    let name = ldd.split_whitespace().find(|word| word.starts_with("libLLVM"))?;
    name.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSTC: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\n\
                         host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn rustc_tells_its_version_and_llvm() {
        let compiler = compiler(Kind::System, RUSTC).expect("a full answer");
        assert_eq!((compiler.version.as_str(), compiler.llvm), ("1.96.0", 22));
        assert_eq!(super::compiler(Kind::System, "rustc 1.96.0"), None);
    }

    #[test]
    fn linker_tells_its_version_and_llvm() {
        assert_eq!(linker_version("bpf-linker 0.13.0\n"), Some((0, 13, 0)));
        assert_eq!(linker_version("bpf-linker 0.14.1-dev"), Some((0, 14, 1)));
        assert_eq!(linker_version("bpf-linker"), None);
        for (ldd, llvm) in [
            ("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)", Some(22)),
            ("\tlibc.so.6 => /lib/libc.so.6\n\tlibLLVM-21.so => /usr/lib/libLLVM-21.so", Some(21)),
            ("\tstatically linked", None),
        ] {
            assert_eq!(shared_llvm(ldd), llvm, "{ldd}");
        }
    }

    #[test]
    fn a_linker_suits_when_it_is_new_enough_and_reads_the_compilers_bitcode() {
        let compiler = compiler(Kind::System, RUSTC).expect("a full answer");
        for (version, llvm, suits) in [
            ((0, 13, 0), Some(22), true),
            ((0, 13, 0), Some(23), true),
            ((0, 13, 0), None, true),
            ((0, 13, 0), Some(21), false),
            ((0, 12, 9), Some(22), false),
            ((0, 14, 0), Some(22), true),
        ] {
            let linker = Linker { path: PathBuf::new(), version, llvm };
            assert_eq!(linker.suits(&compiler), suits, "{version:?} {llvm:?}");
        }
    }

    #[test]
    fn settings_of_the_user_space_build_do_not_reach_the_kernel_side() {
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
            assert!(steers_the_compiler(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "CARGO_TERM_COLOR"] {
            assert!(!steers_the_compiler(name), "{name}");
        }
    }
}
