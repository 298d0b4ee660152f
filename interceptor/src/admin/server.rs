//! The daemon's end of the control socket.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::succession::give;
use super::{AdminError, Answer, Handler, MAX_REQUEST, Request, socket_path};
use crate::cli;

/// Clients served at the same time; others wait in the listen queue.
const MAX_CLIENTS: usize = 16;

/// A client's whole conversation ends within this.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long to wait when accept fails (out of file descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// The listening control socket. Its file goes away with the value.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Another daemon has the same socket, and its file, by now.
    left: Arc<AtomicBool>,
}

impl Server {
    /// Makes the directory and the socket of interceptor `name` in it. A socket file that nobody
    /// listens on any more is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    /// An interceptor of this name runs, or the directory is not root's alone.
    pub fn bind(dir: &Path, name: &str) -> Result<Self, AdminError> {
        let path = socket_path(dir, name);
        prepare_dir(dir)?;
        // Two that start at once look and bind one after the other. Released on return.
        let handle = File::open(dir).map_err(AdminError::io(dir))?;
        let _turn = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, error)| AdminError::io(dir)(error.into()))?;
        remove_dead(&path, name)?;
        let listener = UnixListener::bind(&path).map_err(AdminError::io(&path))?;
        let inode = path.symlink_metadata().map_err(AdminError::io(&path))?.ino();
        // Until here the directory's 0700 keeps others out.
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(AdminError::io(&path))?;
        Ok(Self { listener, path, inode, left: Arc::default() })
    }

    /// Goes on with the listening socket of a daemon before, whose file is at `path`. Needs a tokio
    /// runtime.
    pub(super) fn adopt(socket: OwnedFd, path: PathBuf) -> Result<Self, AdminError> {
        let adopt = || {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = adopt().map_err(AdminError::io(&path))?;
        let inode = path.symlink_metadata().map_or(0, |meta| meta.ino());
        Ok(Self { listener, path, inode, left: Arc::default() })
    }

    /// Removes the socket file that a killed interceptor `name` left in `dir`, if any.
    ///
    /// # Errors
    /// An interceptor of this name runs.
    pub fn clean_stale(dir: &Path, name: &str) -> Result<(), AdminError> {
        remove_dead(&socket_path(dir, name), name)
    }

    /// Answers clients until it is dropped.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let client = match self.listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(%error, "control socket: accept");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let (handler, left) = (Arc::clone(&handler), Arc::clone(&self.left));
            let socket = self.listener.as_fd().try_clone_to_owned();
            tokio::spawn(async move {
                let _slot = slot;
                match timeout(DEADLINE, converse(client, &handler)).await {
                    Ok(Ok(Some((client, contract)))) => match socket {
                        Ok(socket) => {
                            let give = move || give(client, contract, socket, &*handler, &left);
                            let _ = spawn_blocking(give).await;
                        }
                        Err(error) => tracing::warn!(%error, "control socket: handing it over"),
                    },
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "control socket"),
                    Err(_) => tracing::debug!("control socket: client too slow"),
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not that of a successor. The directory stays: in the mount namespaces of covered commands
        // it is a mount point, and removing it would take that mount away.
        let left = self.left.load(Ordering::Acquire);
        if !left && self.path.symlink_metadata().is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_dead(path: &Path, name: &str) -> Result<(), AdminError> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(AdminError::AlreadyRunning(name.to_owned())),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(AdminError::io(path)),
            io::ErrorKind::PermissionDenied => Err(AdminError::NotAllowed(path.to_owned())),
            _ => Err(AdminError::io(path)(error)),
        },
    }
}

/// Makes the directory, or checks that the one there is ours.
fn prepare_dir(dir: &Path) -> Result<(), AdminError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(AdminError::io(dir)(error));
        }
        _ => {}
    }
    let meta = dir.symlink_metadata().map_err(AdminError::io(dir))?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(AdminError::Directory(dir.to_owned()));
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(AdminError::io(dir))
}

/// One request, one answer. A client that wants to take our place is given back, with the form of the
/// kernel's tables that it has.
async fn converse(
    mut client: UnixStream,
    handler: &Arc<dyn Handler>,
) -> io::Result<Option<(std::os::unix::net::UnixStream, u32)>> {
    let allowed = client.peer_cred()?.uid() == 0;
    let answer = if allowed {
        let mut line = Vec::new();
        BufReader::new((&mut client).take(MAX_REQUEST)).read_until(b'\n', &mut line).await?;
        match read(&line) {
            Ok(Request::TakeOver { contract }) => {
                let client = client.into_std()?;
                client.set_nonblocking(false)?;
                return Ok(Some((client, contract)));
            }
            Ok(request) => answer(request, Arc::clone(handler)).await,
            Err(why) => Answer::Error(why),
        }
    } else {
        Answer::Error("only root may ask".to_owned())
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    client.write_all(&line).await?;
    Ok(None)
}

async fn answer(request: Request, handler: Arc<dyn Handler>) -> Answer {
    spawn_blocking(move || perform(request, handler.as_ref()))
        .await
        .unwrap_or_else(|_| Answer::Error("internal error".to_owned()))
}

/// The request in a line; otherwise what is wrong with it.
pub(crate) fn read(line: &[u8]) -> Result<Request, String> {
    if line.last() != Some(&b'\n') {
        return Err("the request is cut off or too long".to_owned());
    }
    serde_json::from_slice(line).map_err(|error| format!("the request cannot be read: {error}"))
}

/// Does what is asked, now.
pub(crate) fn perform(request: Request, handler: &dyn Handler) -> Answer {
    let done = match request {
        Request::Status {} => return Answer::Status(Box::new(handler.status())),
        Request::BypassList {} => {
            let nets = handler.bypass_list();
            return Answer::Bypass(nets.iter().map(ToString::to_string).collect());
        }
        Request::ExecInfo {} => match handler.exec_info() {
            Ok(info) => return Answer::Exec(info),
            Err(why) => Err(why),
        },
        Request::Cover(sandbox) => match handler.cover(&sandbox) {
            Ok(covering) => return Answer::Cover(covering),
            Err(why) => Err(why),
        },
        Request::TakeOver { .. } | Request::Go {} => Err("this is not the time for it".to_owned()),
        Request::BypassAdd { cidr } => {
            cli::parse_cidr(&cidr).and_then(|net| handler.bypass_add(net))
        }
        Request::BypassDel { cidr } => {
            cli::parse_cidr(&cidr).and_then(|net| handler.bypass_del(net))
        }
    };
    done.map_or_else(Answer::Error, |()| Answer::Done)
}
