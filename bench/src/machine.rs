//! What the kernel counts: processor time and memory of processes, and of the whole machine.

use std::fs;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Processor seconds of these processes so far, threads that ended included.
pub(crate) fn processor_seconds(processes: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in processes {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(*pid)?))?;
        let time = clock_gettime(clock).with_context(|| format!("the clock of process {pid}"))?;
        sum += time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9;
    }
    Ok(sum)
}

/// Seconds that all processors together were busy so far, interrupts included.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let ticks = busy_ticks(&stat).context("the first line of /proc/stat")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel's ticks a second")?;
    Ok(ticks as f64 / per_second as f64)
}

/// user, nice, system, (idle, iowait,) irq, softirq.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// Resident memory of these processes in KiB.
pub(crate) fn resident_kib(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in processes {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmRSS")?;
        sum += kib.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// A process and all that it started.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        next += 1;
    }
    all
}

/// One line about the machine: kernel, processors, and how busy it is already.
pub(crate) fn description() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {cores} cores, load average {} at the start",
        release.trim(),
        load.split_whitespace().next().unwrap_or("unknown")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let stat = "cpu  1 10 100 7777 7777 1000 10000 7777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(11_111));
        assert_eq!(busy_ticks("cpu0 1 2 3"), None);
    }

    #[test]
    fn our_own_process_has_time_and_memory() {
        let own = [std::process::id()];
        assert!(processor_seconds(&own).expect("a clock") > 0.0);
        assert!(resident_kib(&own).expect("memory") > 100);
        assert!(busy_seconds().expect("ticks") > 0.0);
    }
}
