//! Getting what the machine lacks: what is planned is shown before it is done.
//!
//! Distribution packages come first where they give the whole set, because they leave the user's
//! rustup as it is; then a dated nightly from rustup. bpf-linker is built into target/tools, never
//! into the user's home.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::shell::{
    Shown, answer, as_root, cargo, check, command, find, is_root, on_terminal, root, say,
};
use crate::toolchain::{self, Compiler, LINKER_VERSION, NIGHTLY, Toolchain, tools};

/// May things be installed?
#[derive(clap::Args)]
pub(crate) struct Install {
    /// Install nothing; if something is missing, say what to type, and fail
    #[arg(long)]
    pub no_install: bool,
}

/// Programs that running and testing need, with the package that has them (Debian's name).
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("bash", "bash"),
    ("bpftool", "bpftool"),
    ("nft", "nftables"),
    ("runc", "runc"),
];

/// The distribution's compiler for BPF.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The LLVM of that compiler, for a linker that has to be built before the compiler can be asked.
const COMPILER_PACKAGES_LLVM: u32 = 22;

/// The LLVMs that bpf-linker can be built with.
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];

/// The programs of [`PROGRAMS`] that aren't here, by package.
pub(crate) fn missing_programs() -> Vec<&'static str> {
    PROGRAMS.iter().filter(|(name, _)| find(name).is_none()).map(|(_, package)| *package).collect()
}

/// What is known of the machine before anything is installed.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Nothing is missing but programs.
    toolchain: bool,
    programs: Vec<&'static str>,
    compilers: Vec<Compiler>,
    /// apt offers the distribution's compiler.
    apt_compiler: bool,
    rustup: bool,
    apt: bool,
    cplusplus: bool,
    /// Majors of the LLVMs whose development files are here, and of those that apt offers.
    llvm_here: Vec<u32>,
    llvm_apt: Vec<u32>,
    /// A linker is here that suits [`COMPILER_PACKAGES`].
    linker: bool,
}

/// What will be done, in this order.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    packages: Vec<String>,
    /// Have rustup get a nightly with rust-src.
    nightly: bool,
    /// Build bpf-linker with this LLVM.
    linker: Option<u32>,
}

/// Installs what is missing, and returns the toolchain.
///
/// # Errors
/// When something can't be, or (`--no-install`, or the user said no) may not be installed.
pub(crate) fn complete(allowed: &Install) -> Result<Toolchain> {
    let mut facts = Facts::gather();
    let lists_are_old = facts.apt && (!facts.apt_compiler || no_lists());
    if lists_are_old && !facts.toolchain && !allowed.no_install && refresh() {
        facts = Facts::gather();
    }
    let mut asked = false;
    // A way that fails is taken out of the facts, and what is left is planned again.
    loop {
        let Some(plan) = plan(&facts) else { bail!("{}", no_way(&facts)) };
        let listed = plan.commands().join("\n  ");
        if allowed.no_install {
            bail!("something is missing and --no-install forbids getting it. Type:\n  {listed}");
        }
        say(format_args!("something is missing; this gets it:\n  {listed}"));
        if !asked && on_terminal() && !confirmed()? {
            bail!("nothing was installed");
        }
        asked = true;

        match plan.carry_out() {
            Ok(()) => facts = Facts { linker: facts.linker, ..Facts::gather() },
            Err(error) => {
                say(format_args!("that failed: {error:#}"));
                if plan.nightly {
                    facts.rustup = false;
                } else if facts.apt_compiler && !plan.packages.is_empty() {
                    facts.apt_compiler = false;
                } else {
                    return Err(error);
                }
                continue;
            }
        }
        match toolchain::look() {
            Some(toolchain) if missing_programs().is_empty() => return Ok(toolchain),
            // A nightly is here now; its linker is the next plan.
            _ if plan.nightly => facts.rustup = false,
            _ => bail!("installed, but not found afterwards: {}", no_way(&facts)),
        }
    }
}

impl Facts {
    fn gather() -> Self {
        let apt = find("apt-get").is_some();
        let offered = |package: &str| apt && is_offered(package);
        let compilers = toolchain::compilers();
        Self {
            toolchain: toolchain::look().is_some(),
            programs: missing_programs(),
            apt_compiler: apt && no_lists() && is_debian_12()
                || COMPILER_PACKAGES.iter().all(|package| offered(package))
                    && offered(&format!("llvm-{COMPILER_PACKAGES_LLVM}-dev")),
            rustup: find("rustup").is_some()
                && !compilers.iter().any(|c| matches!(c.kind, toolchain::Kind::Rustup(_))),
            compilers,
            apt,
            cplusplus: find("c++").is_some(),
            llvm_here: having(|llvm| llvm_prefix(llvm).is_some()),
            llvm_apt: having(|llvm| offered(&format!("llvm-{llvm}-dev"))),
            linker: toolchain::has_linker(COMPILER_PACKAGES_LLVM),
        }
    }
}

fn having(is_so: impl Fn(u32) -> bool) -> Vec<u32> {
    LINKER_LLVMS.into_iter().filter(|llvm| is_so(*llvm)).collect()
}

/// Decides how to get what is missing; `None` when no known way is left.
fn plan(facts: &Facts) -> Option<Plan> {
    let mut plan = Plan::default();
    if !facts.programs.is_empty() {
        if !facts.apt {
            return None;
        }
        plan.packages.extend(facts.programs.iter().map(ToString::to_string));
    }
    if facts.toolchain {
        return Some(plan);
    }
    // A compiler that only lacks its linker.
    for compiler in &facts.compilers {
        let reads = |llvms: &[u32]| llvms.iter().copied().find(|llvm| *llvm >= compiler.llvm);
        if let Some(llvm) = reads(&facts.llvm_here).or_else(|| reads(&facts.llvm_apt)) {
            plan.add_linker(llvm, facts);
            return Some(plan);
        }
    }
    if facts.apt_compiler {
        plan.packages.extend(COMPILER_PACKAGES.map(String::from));
        if !facts.linker {
            plan.add_linker(COMPILER_PACKAGES_LLVM, facts);
        }
        return Some(plan);
    }
    plan.nightly = true;
    facts.rustup.then_some(plan)
}

impl Plan {
    fn add_linker(&mut self, llvm: u32, facts: &Facts) {
        if !facts.llvm_here.contains(&llvm) {
            self.packages.extend([format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]);
        }
        if !facts.cplusplus && facts.apt {
            self.packages.push("g++".into());
        }
        self.linker = Some(llvm);
    }

    /// The commands that carry it out, as one would type them.
    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let sudo = if is_root() { "" } else { "sudo " };
            commands.push(format!("{sudo}apt-get update"));
            commands.push(format!("{sudo}apt-get {}", apt_arguments(&self.packages).join(" ")));
        }
        if self.nightly {
            commands.push(Shown(&rustup_install()).to_string());
        }
        if let Some(llvm) = self.linker {
            let prefix = llvm_prefix(llvm).unwrap_or_else(|| debian_llvm(llvm));
            let install = linker_install(llvm, &prefix);
            let cargo = Shown(&install).to_string();
            let arguments = cargo.split_once(" install ").map_or("", |(_, arguments)| arguments);
            commands.push(format!("LLVM_PREFIX={} cargo install {arguments}", prefix.display()));
        }
        commands
    }

    fn carry_out(&self) -> Result<()> {
        if !self.packages.is_empty() {
            refresh();
            let mut apt = as_root("apt-get", "install distribution packages")?;
            check(
                apt.env("DEBIAN_FRONTEND", "noninteractive").args(apt_arguments(&self.packages)),
            )?;
        }
        if self.nightly {
            check(&mut rustup_install())?;
        }
        if let Some(llvm) = self.linker {
            let prefix = llvm_prefix(llvm)
                .with_context(|| format!("the development files of LLVM {llvm} are not here"))?;
            say(format_args!("building bpf-linker, once; about two minutes"));
            // Its own target directory, removed afterwards: it is large and never needed again.
            let scratch = tools().join("build");
            check(linker_install(llvm, &prefix).env("CARGO_TARGET_DIR", &scratch))?;
            fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        }
        Ok(())
    }
}

/// Never removes a package: a distribution compiler that the user has installed stays.
fn apt_arguments(packages: &[String]) -> Vec<&str> {
    let options = ["install", "--yes", "--no-remove", "--no-install-recommends"];
    options.into_iter().chain(packages.iter().map(String::as_str)).collect()
}

fn rustup_install() -> Command {
    let mut rustup = command("rustup");
    rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    rustup.args(["--component", "rust-src", "--no-self-update"]);
    rustup
}

fn linker_install(llvm: u32, prefix: &Path) -> Command {
    let (major, minor, patch) = LINKER_VERSION;
    let mut install = cargo("install");
    install.arg("bpf-linker").args(["--version", &format!("{major}.{minor}.{patch}")]);
    install.args(["--locked", "--no-default-features", "--features", &format!("llvm-{llvm}")]);
    let tools = tools();
    install.arg("--root").arg(tools.strip_prefix(root()).unwrap_or(&tools));
    install.env("LLVM_PREFIX", prefix);
    install
}

/// Brings apt's lists up to date, once in this process. Its failing is not yet a failure: the lists
/// that are here may do.
fn refresh() -> bool {
    static DONE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *DONE.get_or_init(|| {
        say(format_args!("bringing the package lists up to date (apt-get update)"));
        let updated = as_root("apt-get", "bring the package lists up to date")
            .and_then(|mut apt| check(apt.args(["update", "--quiet=2"])));
        if let Err(error) = &updated {
            say(format_args!("going on with the package lists as they are: {error:#}"));
        }
        updated.is_ok()
    })
}

/// Does apt offer this package?
fn is_offered(package: &str) -> bool {
    let policy = answer(command("apt-cache").env("LC_ALL", "C").args(["policy", package]));
    policy.is_some_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

/// Has apt no lists at all yet, as in a new container?
fn no_lists() -> bool {
    !fs::read_dir("/var/lib/apt/lists").is_ok_and(|mut lists| {
        lists.any(|list| {
            list.is_ok_and(|list| list.file_name().to_string_lossy().contains("_Packages"))
        })
    })
}

/// Is this the distribution that is known to have the compiler's packages?
fn is_debian_12() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let says = |line: &str| release.lines().any(|found| found.replace('"', "") == line);
    says("ID=debian") && says("VERSION_ID=12")
}

/// Where Debian puts an LLVM.
fn debian_llvm(llvm: u32) -> PathBuf {
    format!("/usr/lib/llvm-{llvm}").into()
}

/// Where the development files of this LLVM are, if they are here.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = debian_llvm(llvm);
    // Debian packs one of the libraries that LLVM's own list names, Polly, for itself.
    if debian.join("include/llvm-c/Core.h").exists() && debian.join("lib/libPolly.a").exists() {
        return Some(debian);
    }
    let config = find("llvm-config")?;
    let version = answer(command(&config).arg("--version"))?;
    let is_it = version.split('.').next()? == llvm.to_string() && !config.starts_with(&debian);
    let prefix = PathBuf::from(answer(command(&config).arg("--prefix"))?.trim());
    (is_it && prefix != debian).then_some(prefix)
}

fn confirmed() -> Result<bool> {
    eprint!("xtask: go ahead? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What to do by hand where no known way is left.
fn no_way(facts: &Facts) -> String {
    let mut text = String::from("this machine lacks what the kernel side is built with.\n");
    if !facts.programs.is_empty() {
        text += &format!("  Install with its package manager: {}\n", facts.programs.join(", "));
    }
    if facts.toolchain {
        return text;
    }
    let newest = facts.compilers.iter().map(|compiler| compiler.llvm).max();
    if let Some(llvm) = newest {
        text += &format!(
            "  A compiler is here, with LLVM {llvm}; a bpf-linker with LLVM {llvm} or newer is not, \
             nor are\n  LLVM's development files to build it with.\n"
        );
    } else {
        text += &format!("  Get rustup (https://rustup.rs), then: {}\n", Shown(&rustup_install()));
    }
    let (major, minor, patch) = LINKER_VERSION;
    text += &format!(
        "  Get bpf-linker {major}.{minor}.{patch}, prebuilt: cargo binstall bpf-linker\n  \
         or from https://github.com/aya-rs/bpf-linker/releases, onto PATH ({}).",
        env::consts::ARCH
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::Kind;

    fn nightly(llvm: u32) -> Compiler {
        Compiler { kind: Kind::Rustup("nightly".into()), version: "1.97.0-nightly".into(), llvm }
    }

    /// Debian 12 with rustup's stable and nothing else.
    fn bare_debian() -> Facts {
        Facts {
            programs: vec!["iproute2", "bpftool"],
            apt: true,
            apt_compiler: true,
            rustup: true,
            llvm_apt: vec![22],
            ..Facts::default()
        }
    }

    #[test]
    fn bare_debian_gets_everything_from_packages() {
        let plan = plan(&bare_debian()).expect("a way");
        let packages = [
            "iproute2",
            "bpftool",
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "llvm-22-dev",
            "libpolly-22-dev",
            "g++",
        ];
        assert_eq!(plan.packages, packages);
        assert_eq!((plan.nightly, plan.linker), (false, Some(22)));
    }

    #[test]
    fn only_what_is_missing_is_planned() {
        let facts = Facts { toolchain: true, ..bare_debian() };
        let only_programs = plan(&facts).expect("a way");
        assert_eq!(only_programs.packages, ["iproute2", "bpftool"]);
        assert_eq!((only_programs.nightly, only_programs.linker), (false, None));

        let facts = Facts { linker: true, programs: Vec::new(), ..bare_debian() };
        let only_compiler = plan(&facts).expect("a way");
        assert_eq!(only_compiler.packages, COMPILER_PACKAGES);
        assert_eq!(only_compiler.linker, None);
    }

    #[test]
    fn a_nightly_that_lacks_its_linker_gets_one_whose_llvm_is_not_older() {
        let facts = |llvm, here: &[u32]| Facts {
            compilers: vec![nightly(llvm)],
            llvm_here: here.to_vec(),
            cplusplus: true,
            ..Facts::default()
        };
        assert_eq!(plan(&facts(22, &[21, 23])).and_then(|plan| plan.linker), Some(23));
        assert_eq!(plan(&facts(23, &[22])), None, "an older LLVM can't read its bitcode");
        // Where packages offer a compiler that does have a linker, that is the way.
        let debian = Facts { compilers: vec![nightly(23)], rustup: false, ..bare_debian() };
        assert_eq!(plan(&debian).and_then(|plan| plan.linker), Some(22));
    }

    #[test]
    fn without_apt_rustup_is_asked_and_without_both_nothing_is_left() {
        let rustup = Facts { rustup: true, ..Facts::default() };
        assert!(plan(&rustup).is_some_and(|plan| plan.nightly && plan.packages.is_empty()));
        assert_eq!(plan(&Facts::default()), None);
        let no_programs = Facts { programs: vec!["curl"], rustup: true, ..Facts::default() };
        assert_eq!(plan(&no_programs), None);
        assert!(no_way(&no_programs).contains("curl"));
    }

    #[test]
    fn packages_are_never_removed() {
        let packages = ["curl".to_owned()];
        assert!(apt_arguments(&packages).contains(&"--no-remove"));
    }
}
