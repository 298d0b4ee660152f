//! The mount table, as far as we need it: where cgroup and BPF file systems are mounted.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::mount::MsFlags;
use nix::sys::stat::makedev;

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `st_dev` of what is mounted.
    pub device: u64,
    /// The directory of the file system that is mounted here.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// `cgroup2`, `bpf`, ...
    pub fs_type: String,
    /// The mount's own restrictions, which a remount has to repeat to keep.
    pub flags: MsFlags,
}

impl Mount {
    /// Whether the path leads to this mount: not if something else was mounted over it.
    pub fn is_reachable(&self) -> bool {
        self.point.metadata().is_ok_and(|meta| meta.dev() == self.device)
    }
}

/// The mounts of this process.
///
/// # Errors
/// /proc is not mounted.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Reads a mountinfo table. Lines that are none are left out: the kernel writes none such.
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let flags = fields.next()?.split(|&byte| byte == b',').map(flag).collect();
    // Any number of optional fields end with a lone `-`.
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let device = makedev(major.parse().ok()?, minor.parse().ok()?);
    Some(Mount { device, root, point, fs_type, flags })
}

fn flag(option: &[u8]) -> MsFlags {
    match option {
        b"ro" => MsFlags::MS_RDONLY,
        b"nosuid" => MsFlags::MS_NOSUID,
        b"nodev" => MsFlags::MS_NODEV,
        b"noexec" => MsFlags::MS_NOEXEC,
        // The kernel keeps the access-time options of a remount that names none.
        _ => MsFlags::empty(),
    }
}

/// Blanks, line ends and backslashes in paths are written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_optional_fields_and_escapes() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            41 31 0:38 /a\\040b /mnt/c\\134d ro,nosuid,nodev,noexec shared:4 master:1 - cgroup2 c rw\n\
            not a line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, PathBuf::from("/sys/fs/cgroup"));
        assert_eq!(mounts[0].flags, MsFlags::empty());
        assert_eq!(
            mounts[1],
            Mount {
                device: makedev(0, 38),
                root: "/a b".into(),
                point: "/mnt/c\\d".into(),
                fs_type: "cgroup2".into(),
                flags: MsFlags::MS_RDONLY
                    | MsFlags::MS_NOSUID
                    | MsFlags::MS_NODEV
                    | MsFlags::MS_NOEXEC,
            }
        );
    }

    #[test]
    fn a_mount_that_is_covered_is_not_reachable() {
        let proc = mounts().unwrap().into_iter().find(|m| m.fs_type == "proc").unwrap();
        assert!(proc.is_reachable());
        assert!(!Mount { point: "/".into(), ..proc }.is_reachable());
    }
}
