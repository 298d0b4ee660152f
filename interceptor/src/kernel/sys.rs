//! Raw bpf(2) commands that aya 0.14 does not wrap for every cgroup link: create, replace the
//! program of, pin and open links. One uniform way for all hooks.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Calls bpf(2) with `attr` as the command's part of `union bpf_attr`.
#[expect(unsafe_code, reason = "the one door to bpf(2)")]
fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a repr(C) prefix of union bpf_attr for this command, outlives the call,
    // and its size is passed along; the kernel takes what is missing as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[expect(unsafe_code, reason = "takes ownership of a descriptor that the kernel just made")]
fn own(fd: i32) -> OwnedFd {
    // SAFETY: the kernel returned `fd` as a new descriptor that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup.
///
/// # Errors
/// The kernel's: EINVAL where the hook does not exist, EPERM without privilege.
pub(super) fn link_create(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: prog.as_raw_fd() as u32,
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(own)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateTcx {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program to an interface (tcx), before every other that is there.
///
/// # Errors
/// The kernel's: EINVAL before Linux 6.6, ENODEV where the interface is gone.
pub(super) fn link_create_first(
    prog: BorrowedFd<'_>,
    interface: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u32 = 1 << 3;
    let mut attr = LinkCreateTcx {
        prog_fd: prog.as_raw_fd() as u32,
        target_ifindex: interface,
        attach_type,
        flags: BPF_F_BEFORE,
        ..LinkCreateTcx::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(own)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program behind a link, atomically: there is no moment without one.
///
/// # Errors
/// The kernel's, for instance for a program of another type.
pub(super) fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: prog.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches a link now, whoever else holds it.
///
/// # Errors
/// The kernel's.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: link.as_raw_fd() as u32 };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins an object in bpffs.
///
/// # Errors
/// EEXIST; or `path` is not on bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr =
        Object { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// ENOENT; EPERM.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: path.as_ptr() as u64, ..Object::default() };
    bpf(BPF_OBJ_GET, &mut attr).map(own)
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, with room for the cgroup and tcx variants of its union.
#[repr(C)]
#[derive(Default, Debug, Clone, Copy)]
pub(super) struct LinkInfo {
    kind: u32,
    /// The link's number.
    pub id: u32,
    /// The program's number.
    pub program_id: u32,
    pad: u32,
    target: [u32; 2],
    rest: [u32; 2],
}

impl LinkInfo {
    /// The number of the cgroup or interface that it is attached to; 0 once that is gone.
    pub(super) fn target(&self) -> u64 {
        const BPF_LINK_TYPE_TCX: u32 = 11;
        let [first, second] = self.target;
        if self.kind == BPF_LINK_TYPE_TCX {
            return first.into();
        }
        let [a, b, c, d] = first.to_ne_bytes();
        let [e, f, g, h] = second.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// The head of every `struct bpf_*_info` used here: type and number of the object.
#[repr(C)]
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ObjectId {
    kind: u32,
    id: u32,
}

/// Which map or link it is.
///
/// # Errors
/// The descriptor is neither.
pub(super) fn object_id(object: BorrowedFd<'_>) -> io::Result<ObjectId> {
    info(object)
}

/// What a link is attached to.
///
/// # Errors
/// The descriptor is not a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// As much of an object's info as `T` is long, which must be made of integers only.
fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoByFd {
        bpf_fd: object.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// The numbers of the programs that run for sockets of a cgroup, those of its parents included.
///
/// # Errors
/// The kernel's: ENOSPC for more than 64 of them.
pub(super) fn in_effect(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    let mut ids = [0_u32; 64];
    let mut attr = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..ProgQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(ids.iter().copied().take(attr.prog_cnt as usize).collect())
}
