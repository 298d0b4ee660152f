//! One daemon takes the place of another that lives (T-60): what both say on the control socket.
//!
//! The new one asks (`take_over`) and gets the listening sockets, the control socket's among them, and
//! what is in force besides the command line. It prepares; nothing has changed so far, and if it goes
//! away, the old one goes on. Then it says `go`, the one moment at which everything changes hands: the
//! old one lays everything down, says `done`, and drains.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use interceptor_common::VERSION;
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};

use super::passing::{receive, send};
use super::{AdminError, Answer, Handler, MAX_ANSWER, Request, Server, socket_path};

/// How long the new one may prepare.
const PREPARATION: Duration = Duration::from_secs(120);

/// How long the old one may take to offer, and to lay everything down.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest word of the new one.
const WORD: usize = 64;

/// What is handed over, and in which order: each namespace itself, then its listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The old one's process.
    pub pid: u32,
    /// The covered namespaces.
    pub namespaces: Vec<OfferedNamespace>,
    /// Networks that were bypassed while it ran.
    pub bypass: Vec<String>,
}

/// A covered namespace, as [`Offer`] speaks of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedNamespace {
    /// How people call it.
    pub label: String,
    /// How others may open it; below /proc for "not at all".
    pub path: PathBuf,
    /// How many listeners it has on 127.0.0.1 and its neighbours.
    pub v4: usize,
    /// Whether it has one on `::1`.
    pub v6: bool,
}

impl Offer {
    /// How many descriptors belong to it.
    fn descriptors(&self) -> usize {
        self.namespaces.iter().map(|one| 1 + one.v4 + usize::from(one.v6)).sum()
    }
}

/// A covered namespace, as it was handed over.
#[derive(Debug)]
pub struct HandedOver {
    /// How people call it.
    pub label: String,
    /// How others may open it.
    pub path: PathBuf,
    /// The namespace.
    pub netns: OwnedFd,
    /// Its listeners on 127.0.0.1 and its neighbours, in order.
    pub v4: Vec<OwnedFd>,
    /// Its listener on `::1`.
    pub v6: Option<OwnedFd>,
}

/// The old one's end of a conversation. It always has a last word, so that silence means that the
/// process is gone.
struct Word {
    client: UnixStream,
    last: Answer,
}

impl Drop for Word {
    fn drop(&mut self) {
        if let Ok(line) = line(&self.last) {
            // Whoever is gone hears nothing.
            let _ = self.client.write_all(&line);
        }
    }
}

fn line(word: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    Ok(line)
}

/// Offers `client` our place, and gives it up when told. `contract` is the new one's form of the
/// kernel's tables, `socket` the control socket, `left` is set from when everything is laid down on.
/// Blocks.
pub(super) fn give(
    client: UnixStream,
    contract: u32,
    socket: OwnedFd,
    handler: &dyn Handler,
    left: &AtomicBool,
) {
    let mut word = Word { client, last: Answer::Error("internal error".into()) };
    let given = offer(&word.client, contract, socket, handler).and_then(|()| {
        left.store(true, Ordering::Release);
        handler.lay_down().inspect_err(|_| left.store(false, Ordering::Release))
    });
    word.last = given.map_or_else(Answer::Error, |()| Answer::Done);
}

/// Until the new one says `go`, and is there to go on.
fn offer(
    mut client: &UnixStream,
    contract: u32,
    socket: OwnedFd,
    handler: &dyn Handler,
) -> Result<(), String> {
    if contract != VERSION {
        return Err(format!(
            "the interceptor that runs has its kernel tables in form {VERSION}, this one in form \
             {contract}: they cannot be shared. Kill the one that runs (SIGKILL: its hooks stay, and \
             refuse what needs the proxy) and start this one in its place"
        ));
    }
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (offer, fds) = handler.offer()?;
    let fds: Vec<_> = std::iter::once(socket).chain(fds).collect();
    let offer = line(&Answer::Offer(offer)).map_err(failed("the offer"))?;
    client.set_write_timeout(Some(PATIENCE)).map_err(failed("control socket"))?;
    client.set_read_timeout(Some(PREPARATION)).map_err(failed("control socket"))?;
    send(client, &offer, &fds).map_err(failed("handing sockets over"))?;
    let mut said = Vec::new();
    let mut byte = [0];
    while said.len() < WORD && byte != *b"\n" {
        match client.read(&mut byte).map_err(failed("waiting for the new interceptor"))? {
            0 => return Err("the new interceptor went away".into()),
            _ => said.extend_from_slice(&byte),
        }
    }
    match serde_json::from_slice(&said) {
        Ok(Request::Go {}) if !is_gone(client) => Ok(()),
        Ok(Request::Go {}) => Err("the new interceptor went away".into()),
        _ => Err("this is not the time for it".into()),
    }
}

/// Whether the other end has hung up. It is not to say anything more.
fn is_gone(client: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let read = recv(std::os::fd::AsRawFd::as_raw_fd(client), &mut [0], flags);
    read != Err(nix::errno::Errno::EAGAIN)
}

/// A daemon that lives and whose place is about to be taken.
#[derive(Debug)]
pub struct Predecessor {
    client: UnixStream,
    path: PathBuf,
    name: String,
    socket: OwnedFd,
    offer: Offer,
    fds: Vec<OwnedFd>,
}

impl Predecessor {
    /// Asks the interceptor of this name for its place. `None`: none runs. Blocks.
    ///
    /// # Errors
    /// We may not ask, or it refuses: it has a COMMAND of its own, say.
    pub fn ask(dir: &Path, name: &str) -> Result<Option<Self>, AdminError> {
        Self::ask_as(dir, name, VERSION)
    }

    /// As [`Self::ask`], with a form of the kernel's tables.
    pub(super) fn ask_as(
        dir: &Path,
        name: &str,
        contract: u32,
    ) -> Result<Option<Self>, AdminError> {
        let path = socket_path(dir, name);
        let mut client = match super::client::connect(&path, name, PATIENCE) {
            Ok(client) => client,
            Err(AdminError::NotRunning(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let failed = |error| super::client::failed(&path, name, error);
        let request = line(&Request::TakeOver { contract }).map_err(failed)?;
        client.write_all(&request).map_err(failed)?;
        let count = |line: &[u8]| match serde_json::from_slice(line)? {
            Answer::Offer(offer) => Ok(1 + offer.descriptors()),
            _ => Ok(0),
        };
        let (line, fds) = receive(&client, MAX_ANSWER, count).map_err(failed)?;
        let answer = serde_json::from_slice(&line);
        let offer = match answer.map_err(|error| AdminError::Protocol(error.to_string()))? {
            Answer::Offer(offer) => offer,
            Answer::Error(why) => return Err(AdminError::Refused(why)),
            other => return Err(super::client::unexpected(&other)),
        };
        let mut fds = fds.into_iter();
        let socket = fds.next().ok_or_else(|| AdminError::Protocol("no socket came".into()))?;
        let fds = fds.collect();
        Ok(Some(Self { client, path, name: name.to_owned(), socket, offer, fds }))
    }

    /// What else is in force.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The namespaces that it covers. They are given once.
    pub fn namespaces(&mut self) -> Vec<HandedOver> {
        let mut fds = std::mem::take(&mut self.fds).into_iter();
        let mut handed = Vec::new();
        for one in &self.offer.namespaces {
            let Some(netns) = fds.next() else { break };
            let v4 = fds.by_ref().take(one.v4).collect();
            let v6 = if one.v6 { fds.next() } else { None };
            let (label, path) = (one.label.clone(), one.path.clone());
            handed.push(HandedOver { label, path, netns, v4, v6 });
        }
        handed
    }

    /// Takes its place: when this returns, it does nothing any more but drain. One that has died
    /// meanwhile has left everything as it was, and its place is taken as well. Blocks.
    ///
    /// # Errors
    /// It refuses, or does not answer: then everything is as before.
    pub fn go(mut self) -> Result<Server, AdminError> {
        let go = line(&Request::Go {}).map_err(AdminError::io(&self.path))?;
        // What it has to say, it may have said already.
        let _ = self.client.write_all(&go);
        let mut answer = Vec::new();
        match (&self.client).take(MAX_ANSWER).read_to_end(&mut answer) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                return Err(super::client::failed(&self.path, &self.name, error));
            }
            _ => {}
        }
        if answer.is_empty() {
            eprintln!(
                "interceptor: the one before (pid {}) died while it handed over; going on in its place",
                self.offer.pid
            );
            return Server::adopt(self.socket, self.path);
        }
        match serde_json::from_slice(&answer) {
            Ok(Answer::Done) => Server::adopt(self.socket, self.path),
            Ok(Answer::Error(why)) => Err(AdminError::Refused(why)),
            Ok(other) => Err(super::client::unexpected(&other)),
            Err(error) => Err(AdminError::Protocol(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
