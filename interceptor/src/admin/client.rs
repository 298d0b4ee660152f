//! The command line's end of the control socket.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::{
    AdminError, Answer, Covering, DIR, ExecInfo, MAX_ANSWER, Request, Sandbox, StatusReport,
    socket_path,
};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks interceptor `name` for its state.
///
/// # Errors
/// It does not run, or we may not ask.
pub fn status(name: &str) -> Result<StatusReport, AdminError> {
    match request(name, &Request::Status {})? {
        Answer::Status(report) => Ok(*report),
        other => Err(unexpected(&other)),
    }
}

/// Whether interceptor `name` runs where this program does: in one mount namespace, which a container has
/// to itself.
///
/// # Errors
/// As [`status`].
pub fn is_here(name: &str) -> Result<bool, AdminError> {
    let path = socket_path(Path::new(DIR), name);
    let stream = connect(&path, name, PATIENCE)?;
    let peer =
        getsockopt(&stream, PeerCredentials).map_err(|error| failed(&path, name, error.into()))?;
    // A process of another PID namespace has no number here.
    let of = |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt")).map(|meta| meta.ino());
    let own = of("self").map_err(|error| failed(&path, name, error))?;
    Ok(of(&peer.pid().to_string()).is_ok_and(|peer| peer == own))
}

/// Lets `net` connect directly.
///
/// # Errors
/// As [`status`], or the daemon refuses.
pub fn bypass_add(name: &str, net: IpNet) -> Result<(), AdminError> {
    done(request(name, &Request::BypassAdd { cidr: net.to_string() })?)
}

/// Has `net` intercepted again.
///
/// # Errors
/// As [`status`], or the daemon refuses.
pub fn bypass_del(name: &str, net: IpNet) -> Result<(), AdminError> {
    done(request(name, &Request::BypassDel { cidr: net.to_string() })?)
}

/// The networks that connect directly.
///
/// # Errors
/// As [`status`].
pub fn bypass_list(name: &str) -> Result<Vec<String>, AdminError> {
    match request(name, &Request::BypassList {})? {
        Answer::Bypass(nets) => Ok(nets),
        other => Err(unexpected(&other)),
    }
}

/// Where a further command is to be put.
///
/// # Errors
/// As [`status`], or this interceptor has no place for commands.
pub fn exec_info(name: &str) -> Result<ExecInfo, AdminError> {
    match request(name, &Request::ExecInfo {})? {
        Answer::Exec(info) => Ok(info),
        other => Err(unexpected(&other)),
    }
}

/// Asks interceptor `name` to cover a pod's network namespace, waiting no longer than `patience` for each
/// step.
///
/// # Errors
/// As [`status`], or it covers no pods.
pub fn cover(name: &str, sandbox: Sandbox, patience: Duration) -> Result<Covering, AdminError> {
    match request_within(patience, Path::new(DIR), name, &Request::Cover(sandbox))? {
        Answer::Cover(covering) => Ok(covering),
        other => Err(unexpected(&other)),
    }
}

/// Asks interceptor `name`; [`Answer::Error`] comes back as an error.
///
/// # Errors
/// It does not run, we may not ask, or it refuses.
pub fn request(name: &str, request: &Request) -> Result<Answer, AdminError> {
    request_in(Path::new(DIR), name, request)
}

/// As [`request`], with the sockets in another directory.
pub(super) fn request_in(dir: &Path, name: &str, request: &Request) -> Result<Answer, AdminError> {
    request_within(PATIENCE, dir, name, request)
}

/// As [`request_in`], waiting no longer than `patience` for each step.
pub(super) fn request_within(
    patience: Duration,
    dir: &Path,
    name: &str,
    request: &Request,
) -> Result<Answer, AdminError> {
    let protocol = |error: serde_json::Error| AdminError::Protocol(error.to_string());
    let mut line = serde_json::to_vec(request).map_err(protocol)?;
    line.push(b'\n');
    let path = socket_path(dir, name);
    let mut answer = asked(&path, name, patience, &line)?;
    if answer.is_empty() {
        // Who took this in has ended since, as its place was taken over: its successor is asked, on the
        // same socket. To ask twice does no harm: at worst it is said to be done already.
        answer = asked(&path, name, patience, &line)?;
    }
    if answer.is_empty() {
        return Err(AdminError::NoAnswer(name.to_owned()));
    }
    match serde_json::from_slice(&answer).map_err(protocol)? {
        Answer::Error(why) => Err(AdminError::Refused(why)),
        answer => Ok(answer),
    }
}

/// What comes back for one line; nothing, where the other side ended before it answered.
fn asked(path: &Path, name: &str, patience: Duration, line: &[u8]) -> Result<Vec<u8>, AdminError> {
    let mut socket = connect(path, name, patience)?;
    let mut answer = Vec::new();
    let asked = socket.write_all(line);
    match asked.and_then(|()| socket.take(MAX_ANSWER).read_to_end(&mut answer)) {
        Ok(_) => Ok(answer),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(failed(path, name, error)),
    }
}

/// Connects to the control socket at `path`, waiting no longer than `patience` for each step after
/// that.
pub(super) fn connect(
    path: &Path,
    name: &str,
    patience: Duration,
) -> Result<UnixStream, AdminError> {
    let failed = |error| failed(path, name, error);
    let socket = UnixStream::connect(path).map_err(failed)?;
    socket.set_read_timeout(Some(patience)).map_err(failed)?;
    socket.set_write_timeout(Some(patience)).map_err(failed)?;
    Ok(socket)
}

/// What an I/O error at the control socket means.
pub(super) fn failed(path: &Path, name: &str, error: io::Error) -> AdminError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AdminError::NotRunning(name.to_owned())
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            AdminError::NoAnswer(name.to_owned())
        }
        io::ErrorKind::PermissionDenied => AdminError::NotAllowed(path.to_owned()),
        _ => AdminError::io(path)(error),
    }
}

fn done(answer: Answer) -> Result<(), AdminError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn unexpected(answer: &Answer) -> AdminError {
    let kind = match answer {
        Answer::Status(_) => "status",
        Answer::Bypass(_) => "bypass",
        Answer::Exec(_) => "exec",
        Answer::Cover(_) => "cover",
        Answer::Offer(_) => "offer",
        Answer::Done => "done",
        Answer::Error(_) => "error",
    };
    AdminError::Protocol(format!("it answered {kind} to another question"))
}
