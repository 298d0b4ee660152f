//! A program of somebody else's at a cgroup that sends connects to a service's address to a backend, as
//! what replaces kube-proxy does.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;
const ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    /// Log, kernel version, flags, name, interface.
    unused: [u32; 11],
    expected_attach: u32,
}

/// The same for BPF_PROG_ATTACH and _DETACH.
#[repr(C)]
#[derive(Default)]
struct Attach {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// The attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct Rewriter {
    cgroup: File,
    program: OwnedFd,
}

impl Rewriter {
    /// Attaches one for TCP and UDP at a cgroup, beside what is there.
    ///
    /// # Errors
    /// When an address is not IPv4, or the kernel does not take it.
    pub fn attach(cgroup: &Path, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let instructions = program(from, to)?;
        let license = c"MIT";
        let load = Load {
            kind: CGROUP_SOCK_ADDR,
            count: u32::try_from(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            expected_attach: INET4_CONNECT,
            ..Load::default()
        };
        let descriptor = call(PROG_LOAD, &load).context("loading")?;
        #[expect(unsafe_code, reason = "a descriptor that a system call made")]
        // SAFETY: the kernel made it for us just now, and nobody else owns it.
        let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let cgroup = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
        let rewriter = Self { cgroup, program };
        call(PROG_ATTACH, &rewriter.attached(ALLOW_MULTI)).context("attaching")?;
        Ok(rewriter)
    }

    fn attached(&self, flags: u32) -> Attach {
        let number = |fd: i32| u32::try_from(fd).unwrap_or(u32::MAX);
        Attach {
            cgroup: number(self.cgroup.as_raw_fd()),
            program: number(self.program.as_raw_fd()),
            kind: INET4_CONNECT,
            flags,
            ..Attach::default()
        }
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        if let Err(error) = call(PROG_DETACH, &self.attached(0)) {
            eprintln!("cannot detach the rewriter: {error}");
        }
    }
}

/// `if (ctx->user_ip4 == from.ip && ctx->user_port == from.port) { both = to; } return 1;`
fn program(from: SocketAddr, to: SocketAddr) -> Result<Vec<u64>> {
    /// Where `struct bpf_sock_addr` has them.
    const USER_IP4: u64 = 4;
    const USER_PORT: u64 = 24;
    let (IpAddr::V4(from_ip), IpAddr::V4(to_ip)) = (from.ip(), to.ip()) else {
        bail!("{from} and {to}: not IPv4")
    };
    let ip = |ip: std::net::Ipv4Addr| u32::from_ne_bytes(ip.octets());
    let port = |port: u16| u32::from(port.to_be());
    let one = |code: u64, registers: u64, offset: u64, immediate: u32| {
        code | registers << 8 | offset << 16 | u64::from(immediate) << 32
    };
    Ok(vec![
        one(0xbf, 0x16, 0, 0),                 // r6 = r1
        one(0x61, 0x67, USER_IP4, 0),          // r7 = *(u32 *)(r6 + 4)
        one(0x56, 0x07, 6, ip(from_ip)),       // if w7 != from.ip goto out
        one(0x61, 0x68, USER_PORT, 0),         // r8 = *(u32 *)(r6 + 24)
        one(0x56, 0x08, 4, port(from.port())), // if w8 != from.port goto out
        one(0xb4, 0x07, 0, ip(to_ip)),         // w7 = to.ip
        one(0x63, 0x76, USER_IP4, 0),          // *(u32 *)(r6 + 4) = r7
        one(0xb4, 0x08, 0, port(to.port())),   // w8 = to.port
        one(0x63, 0x86, USER_PORT, 0),         // *(u32 *)(r6 + 24) = r8
        one(0xb7, 0x00, 0, 1),                 // out: r0 = 1
        one(0x95, 0x00, 0, 0),                 // exit
    ])
}

fn call<T>(command: i32, attributes: &T) -> Result<i32, Errno> {
    #[expect(unsafe_code, reason = "a system call that no crate of ours wraps")]
    // SAFETY: the kernel reads so many bytes of the attributes, and what they point to, all of which
    // outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    Errno::result(result).map(|descriptor| descriptor as i32)
}
