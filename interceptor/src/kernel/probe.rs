//! What this kernel must have, and what to say when it has not (T-65).

use std::fmt;

use aya::programs::ProgramError;

use super::hooks::{HOOKS, Hook, Side};
use super::{KernelError, chain};

/// Major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The first kernel that has namespace cookies in sock_ops.
const FLOOR: KernelVersion = KernelVersion(5, 15);

/// Something that this kernel does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this kernel ({running}) lacks {feature}; interceptor needs Linux {needed} or later")]
pub struct MissingFeature {
    feature: String,
    running: String,
    needed: KernelVersion,
}

/// The running kernel, if it is new enough.
///
/// # Errors
/// It is older than the floor.
pub fn require_floor() -> Result<KernelVersion, MissingFeature> {
    let release = running();
    let version = parse(&release).unwrap_or(KernelVersion(0, 0));
    if version < FLOOR {
        return Err(MissingFeature {
            feature: "network namespace cookies in sock_ops programs".into(),
            running: release,
            needed: FLOOR,
        });
    }
    Ok(version)
}

/// Whether this kernel has what the interface layer hangs on.
///
/// # Errors
/// It is older.
pub fn require_interface_hooks() -> Result<(), MissingFeature> {
    let oldest = |hook: &&Hook| hook.side == Side::Interface;
    let hook = HOOKS.iter().find(oldest).expect("the list has interface hooks");
    let needed = KernelVersion(hook.since.0, hook.since.1);
    let enough = parse(&running()).is_some_and(|version| version >= needed);
    if enough { Ok(()) } else { Err(missing(hook)) }
}

fn running() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_else(|_| "unknown".into())
}

fn parse(release: &str) -> Option<KernelVersion> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some(KernelVersion(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn missing(hook: &Hook) -> MissingFeature {
    MissingFeature {
        feature: match hook.side {
            Side::Interface => format!("tcx, on which the interface layer hangs ({})", hook.name),
            Side::Workload | Side::Daemon => format!("the cgroup hook {}", hook.name),
        },
        running: running(),
        needed: KernelVersion(hook.since.0, hook.since.1),
    }
}

/// A failed load, in words: EINVAL without a verifier log means that the kernel does not know the
/// hook.
pub(super) fn explain_load(hook: &Hook, error: &ProgramError) -> KernelError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        match io_error.raw_os_error() {
            Some(libc::EPERM) => return KernelError::Privilege(io_error.to_string()),
            Some(libc::EINVAL) if verifier_log.to_string().trim().is_empty() => {
                return KernelError::Missing(missing(hook));
            }
            _ => {}
        }
        tracing::debug!("verifier on {}: {verifier_log}", hook.program);
        let log = verifier_log.to_string();
        let last = log.lines().rev().find(|line| !is_statistic(line)).unwrap_or("no reason given");
        return KernelError::Load(format!(
            "the kernel's verifier refuses {}: {last} ({io_error}); INTERCEPTOR_LOG=debug shows all it said",
            hook.name
        ));
    }
    KernelError::Load(format!("{}: {}", hook.name, chain(error)))
}

/// The lines with which every verifier log ends.
fn is_statistic(line: &str) -> bool {
    ["verification time", "stack depth", "processed "].iter().any(|head| line.starts_with(head))
        || line.trim().is_empty()
}

/// A failed attach, if it means that the hook does not exist.
pub(super) fn explain_attach(hook: &Hook, error: &std::io::Error) -> Option<MissingFeature> {
    (error.raw_os_error() == Some(libc::EINVAL)).then(|| missing(hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions() {
        for (release, version) in [
            ("6.18.44-generic", Some(KernelVersion(6, 18))),
            ("5.15.0-1019-aws", Some(KernelVersion(5, 15))),
            ("5.4.0", Some(KernelVersion(5, 4))),
            ("6.1", Some(KernelVersion(6, 1))),
            ("strange", None),
        ] {
            assert_eq!(parse(release), version, "{release}");
        }
    }

    #[test]
    fn t65_an_unknown_hook_is_named_with_the_kernel_that_has_it() {
        let hook = HOOKS.iter().find(|hook| hook.name == "getsockname4").expect("in the list");
        let missing = explain_attach(hook, &std::io::Error::from_raw_os_error(libc::EINVAL));
        let text = missing.expect("EINVAL means missing").to_string();
        assert!(text.contains("the cgroup hook getsockname4"), "{text}");
        assert!(text.ends_with("interceptor needs Linux 5.8 or later"), "{text}");
        assert_eq!(explain_attach(hook, &std::io::Error::from_raw_os_error(libc::ENOMEM)), None);
    }
}
