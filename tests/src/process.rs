//! What a process holds and uses, by /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// File descriptors.
    pub descriptors: u64,
    /// Memory, in KiB.
    pub resident: u64,
}

impl Held {
    /// What process `pid` holds now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn by(pid: u32) -> Result<Self> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        Ok(Self { descriptors, resident: status(pid, "VmRSS")? })
    }

    /// Whether that is at most a tenth more than `before`, of either.
    #[must_use]
    pub fn is_like(self, before: Self) -> bool {
        let fits = |now, before| now <= before + before / 10;
        fits(self.descriptors, before.descriptors) && fits(self.resident, before.resident)
    }
}

/// A size of `/proc/PID/status`, in KiB.
///
/// # Errors
/// When the process is gone, or there is no such line.
pub fn status(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.with_context(|| format!("{name} in {text}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

/// The most file descriptors that a process may have: the soft limit.
///
/// # Errors
/// As [`status`].
pub fn most_descriptors(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let most = line.and_then(|line| line.split_whitespace().next());
    Ok(most.with_context(|| text.clone())?.parse()?)
}

/// What a process has used of the processors.
///
/// # Errors
/// When it is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<_> = fields.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every architecture that Linux still has.
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_more_is_like_before_and_no_more() {
        let before = Held { descriptors: 20, resident: 1000 };
        for (descriptors, resident, like) in
            [(22, 1100, true), (3, 5, true), (23, 1000, false), (20, 1101, false)]
        {
            assert_eq!(Held { descriptors, resident }.is_like(before), like);
        }
        let own = Held::by(std::process::id()).expect("our own");
        assert!(own.descriptors > 3 && own.resident > 100, "{own:?}");
    }
}
