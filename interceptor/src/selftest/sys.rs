//! The door to system calls that no crate wraps in the form that an attacker needs.
#![expect(unsafe_code, reason = "odd addresses, options and forks are what is tried here")]

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// A socket of any kind.
///
/// # Errors
/// socket(2)'s.
pub(super) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let flags = kind | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = done(unsafe { libc::socket(domain, flags, protocol) })?;
    // SAFETY: the descriptor is new and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// setsockopt(2) with these bytes.
///
/// # Errors
/// The call's.
pub(super) fn set_option(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: pointer and length are those of `value`, which outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    done(result).map(drop)
}

/// setsockopt(2) with a number.
///
/// # Errors
/// The call's.
pub(super) fn set_number(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: i32,
) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// An address as its bytes, to be changed at will.
pub(super) fn address_bytes(address: SocketAddr) -> Vec<u8> {
    let storage = SockaddrStorage::from(address);
    let length = storage.len() as usize;
    // SAFETY: a storage's first `len` bytes are the address, and initialised.
    unsafe { std::slice::from_raw_parts(storage.as_ptr().cast::<u8>(), length) }.to_vec()
}

/// The same, saying that it is of no family (AF_UNSPEC).
pub(super) fn of_no_family(address: SocketAddr) -> Vec<u8> {
    let mut bytes = address_bytes(address);
    bytes[..2].copy_from_slice(&(libc::AF_UNSPEC as u16).to_ne_bytes());
    bytes
}

/// connect(2) to an address in bytes.
///
/// # Errors
/// The call's.
pub(super) fn connect(socket: &impl AsRawFd, address: &[u8]) -> io::Result<()> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: pointer and length are those of `address`; the kernel copies it before it reads it.
    done(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// sendto(2) to an address in bytes.
///
/// # Errors
/// The call's.
pub(super) fn send_to(
    socket: &impl AsRawFd,
    data: &[u8],
    flags: i32,
    address: &[u8],
) -> io::Result<()> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: both pointers and lengths are those of slices that outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            flags | libc::MSG_NOSIGNAL,
            address.as_ptr().cast(),
            length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// sendmmsg(2): the same datagram to each of `to` in one call; how many were sent.
///
/// # Errors
/// The call's: none was sent.
pub(super) fn send_many(
    socket: &impl AsRawFd,
    data: &[u8],
    to: &[SocketAddr],
) -> io::Result<usize> {
    let mut names: Vec<Vec<u8>> = to.iter().map(|address| address_bytes(*address)).collect();
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut messages: Vec<libc::mmsghdr> = names
        .iter_mut()
        .map(|name| {
            // SAFETY: all-zero bytes are a valid mmsghdr.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = name.as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = name.len() as libc::socklen_t;
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = messages.len() as libc::c_uint;
    // SAFETY: names, the part and its data outlive the call; sending writes to none of them.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    done(sent).map(|sent| sent as usize)
}

/// connect(2) again and again for `span`, each on a socket of its own, while another thread flips the
/// address in memory between two. Gives the last error.
///
/// # Errors
/// None: what the connects met is not what is judged.
pub(super) fn connect_flipping(
    a: SocketAddrV4,
    b: SocketAddrV4,
    span: Duration,
) -> io::Result<String> {
    let words = |address| -> Vec<u32> {
        let bytes = address_bytes(SocketAddr::V4(address));
        bytes.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]])).collect()
    };
    let (a, b) = (words(a), words(b));
    let shared: Vec<AtomicU32> = a.iter().map(|word| AtomicU32::new(*word)).collect();
    let stop = AtomicBool::new(false);
    let until = Instant::now() + span;
    let mut last = String::from("connected");
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for words in [&b, &a] {
                    for (shared, word) in shared.iter().zip(words) {
                        shared.store(*word, Ordering::Relaxed);
                    }
                }
            }
        });
        while Instant::now() < until {
            let Ok(socket) = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)
            else {
                break;
            };
            let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: 16 bytes of atomics have the size of sockaddr_in; only the kernel reads them,
            // and whatever mixture it finds is an address.
            let result = unsafe {
                libc::connect(socket.as_raw_fd(), shared.as_ptr().cast::<libc::sockaddr>(), length)
            };
            if let Err(error) = done(result) {
                last = super::talk::name_of(&error);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(format!("many connects, the last {last}"))
}

/// From linux/sched.h; libc's is of a type that it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How io_uring is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    /// In the call.
    Plain,
    /// By a worker of the kernel's (IOSQE_ASYNC).
    Worker,
    /// By a thread of the kernel's that polls the queue (IORING_SETUP_SQPOLL).
    Polled,
}

/// A socket from io_uring, connected by io_uring.
///
/// # Errors
/// No ring can be made, or the socket's or the connect's.
pub(super) fn ring_connect(ring: Ring, to: SocketAddr) -> io::Result<OwnedFd> {
    let mut queue = match ring {
        Ring::Polled => IoUring::builder().setup_sqpoll(50).build(4)?,
        _ => IoUring::new(4)?,
    };
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let make = opcode::Socket::new(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).build();
    let fd = submit(&mut queue, ring, make)?;
    // SAFETY: the ring just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = address_bytes(to);
    let length = address.len() as libc::socklen_t;
    let target = types::Fd(socket.as_raw_fd());
    loop {
        let connect = opcode::Connect::new(target, address.as_ptr().cast(), length).build();
        let Err(error) = submit(&mut queue, ring, connect) else { return Ok(socket) };
        match error.raw_os_error() {
            // Its wait was interrupted; the connect goes on, and is asked for again.
            Some(libc::EINTR | libc::EALREADY | libc::EINPROGRESS) => {
                thread::sleep(Duration::from_millis(1));
            }
            Some(libc::EISCONN) => return Ok(socket),
            _ => return Err(error),
        }
    }
}

/// A datagram by io_uring's sendmsg.
///
/// # Errors
/// No ring can be made, or the call's.
pub(super) fn ring_send(socket: &OwnedFd, data: &[u8], to: SocketAddr) -> io::Result<()> {
    let mut queue = IoUring::new(4)?;
    let mut name = address_bytes(to);
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = name.len() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let send = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), &raw const message).build();
    submit(&mut queue, Ring::Plain, send).map(drop)
}

fn submit(queue: &mut IoUring, ring: Ring, entry: io_uring::squeue::Entry) -> io::Result<i32> {
    let entry = if ring == Ring::Worker { entry.flags(Flags::ASYNC) } else { entry };
    // SAFETY: what the entry points at outlives it: its end is waited for here.
    unsafe { queue.submission().push(&entry) }.map_err(io::Error::other)?;
    // A signal ends the wait, not what is waited for.
    while let Err(error) = queue.submit_and_wait(1) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let done = queue.completion().next().ok_or(io::ErrorKind::UnexpectedEof)?.result();
    if done < 0 { Err(io::Error::from_raw_os_error(-done)) } else { Ok(done) }
}

/// Receives one descriptor over a unix socket.
///
/// # Errors
/// The other end closed, or sent none.
pub(super) fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nothing was lent"))
}

/// Does `work` in a child that was made inside a cgroup (CLONE_INTO_CGROUP), and waits for its end.
///
/// # Errors
/// clone3(2)'s, or what the child's `work` met.
pub(super) fn in_cgroup(cgroup: &OwnedFd, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut args = [0_u64; 11];
    args[0] = CLONE_INTO_CGROUP;
    args[4] = libc::SIGCHLD as u64;
    args[10] = cgroup.as_raw_fd() as u64;
    // SAFETY: 11 words are clone_args of version 2. Without CLONE_VM this is a fork, and this process
    // has one thread, so the child may do whatever a process may.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of::<[u64; 11]>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => leave(work()),
        pid => wait(Pid::from_raw(pid as i32)),
    }
}

/// Does `work` in a grandchild that nobody waits for but init: a daemon of the old kind.
///
/// # Errors
/// fork(2)'s, or what `work` met.
pub(super) fn as_daemon(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (mut report, from) = UnixStream::pair()?;
    // SAFETY: this process has one thread, so the child may do whatever a process may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(from);
            wait(child)?;
            let mut bytes = [0; 4];
            io::Read::read_exact(&mut report, &mut bytes)?;
            match i32::from_ne_bytes(bytes) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        ForkResult::Child => {
            let _ = nix::unistd::setsid();
            // SAFETY: as above.
            if !matches!(unsafe { fork() }, Ok(ForkResult::Child)) {
                leave(Ok(()));
            }
            let result = work();
            let code = result.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            let _ = io::Write::write_all(&mut &from, &code.to_ne_bytes());
            leave(Ok(()))
        }
    }
}

/// Ends a child; its status is the error's number.
fn leave(result: io::Result<()>) -> ! {
    let code = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    // SAFETY: ends the process without running what the parent set up for its own end.
    unsafe { libc::_exit(code) }
}

fn wait(child: Pid) -> io::Result<()> {
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
        other => Err(io::Error::other(format!("the child ended: {other:?}"))),
    }
}

/// The address of a packet socket (packet(7)): interface, protocol and hardware address.
pub(super) fn link_address(index: u32, protocol: u16, mac: [u8; 6]) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<libc::sockaddr_ll>()];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(offset_of!(libc::sockaddr_ll, sll_family), &(libc::AF_PACKET as u16).to_ne_bytes());
    put(offset_of!(libc::sockaddr_ll, sll_protocol), &protocol.to_be_bytes());
    put(offset_of!(libc::sockaddr_ll, sll_ifindex), &index.to_ne_bytes());
    put(offset_of!(libc::sockaddr_ll, sll_halen), &[6]);
    put(offset_of!(libc::sockaddr_ll, sll_addr), &mac);
    bytes
}

/// How many packets a packet socket could not keep (PACKET_STATISTICS). Asking sets it to none.
///
/// # Errors
/// The call's.
pub(super) fn lost_packets(socket: &impl AsRawFd) -> io::Result<u32> {
    let mut counts = [0_u32; 2];
    let mut length = size_of::<[u32; 2]>() as libc::socklen_t;
    // SAFETY: pointer and length are those of `counts`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            counts.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    done(result).map(|_| counts[1])
}

/// From linux/if_packet.h.
const PACKET_STATISTICS: i32 = 6;

fn done(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
