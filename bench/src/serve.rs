//! What answers at the far side: threads of the driver with sockets in that side's namespace.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use interceptor_tests::ca::Authority;
use interceptor_tests::netns::Namespace;
use nix::sys::socket;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::client::Duplex;
use crate::job::{BODY_BYTES, PATTERN, TRIP_BYTES, opcode};

/// TLS; behind it the same as on the others.
pub(crate) const TLS_PORT: u16 = 443;
/// Meant for HTTP.
pub(crate) const HTTP_PORT: u16 = 80;
/// Meant for plain TCP.
pub(crate) const TCP_PORT: u16 = 7000;

/// Threads that wait for connections though nothing comes; those above it end.
const SPARE: usize = 32;
/// Enough for a TLS connection.
const STACK: usize = 256 << 10;

/// The servers of one world. Dropping it closes them; connections end with their clients.
#[derive(Debug)]
pub(crate) struct Servers {
    listeners: Vec<Arc<Listener>>,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    /// Threads in accept.
    waiting: AtomicUsize,
}

impl Servers {
    /// Listens on every address of the namespace.
    pub(crate) fn start(at: &Namespace, authority: Arc<Authority>) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(authority);
        tls.send_tls13_tickets = 0;
        let tls = Arc::new(tls);
        let mut listeners = Vec::new();
        for port in [TLS_PORT, HTTP_PORT, TCP_PORT] {
            let socket = at
                .inside(|| TcpListener::bind(("0.0.0.0", port)))?
                .with_context(|| format!("listening on port {port}"))?;
            // std's queue of 128 is short for what is measured here.
            socket::listen(&socket, socket::Backlog::new(4096)?)?;
            let tls = (port == TLS_PORT).then(|| Arc::clone(&tls));
            let listener = Arc::new(Listener { socket, tls, waiting: AtomicUsize::new(0) });
            listener.spawn()?;
            listeners.push(listener);
        }
        Ok(Self { listeners })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes the threads in accept, which end then; it cannot fail on a listening socket.
            let _ = socket::shutdown(listener.socket.as_raw_fd(), socket::Shutdown::Both);
        }
    }
}

impl Listener {
    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let listener = Arc::clone(self);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let thread = thread::Builder::new().stack_size(STACK);
        thread.spawn(move || listener.serve()).map(|_| ())
    }

    /// Accepts and serves one connection after the other. The number of threads follows that of
    /// connections: whoever takes the last waiting place fills it first.
    fn serve(self: Arc<Self>) {
        loop {
            let accepted = self.socket.accept();
            let left = self.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
            let Ok((client, _)) = accepted else { return };
            if left == 0 && self.spawn().is_err() {
                eprintln!("the server is out of threads");
            }
            // A client that breaks off has its own report.
            let _ = self.connection(client);
            if self.waiting.load(Ordering::Relaxed) >= SPARE {
                return;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn connection(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            session(&mut client)?;
            return client.shutdown(Shutdown::Write);
        };
        let server = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(server, client);
        session(&mut stream)?;
        stream.conn.send_close_notify();
        stream.flush()
    }
}

/// Answers what comes until the client, or an opcode, ends it.
fn session(stream: &mut dyn Duplex) -> io::Result<()> {
    let answer = answer();
    let mut buffer = vec![0; 4096];
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..])? {
            0 => return Ok(()),
            more => have += more,
        }
        while let Some(length) = length(&buffer[..have]) {
            let request = &buffer[..length];
            match request[0] {
                opcode::CLOSE => return stream.write_all(request),
                opcode::TRIP => stream.write_all(request)?,
                opcode::BULK => bulk(stream, request)?,
                _ => stream.write_all(&answer)?,
            }
            buffer.copy_within(length..have, 0);
            have -= length;
        }
        if have == buffer.len() {
            return Err(io::Error::other("a request that is too long"));
        }
    }
}

/// The length of the request that begins here, once it is whole.
fn length(bytes: &[u8]) -> Option<usize> {
    let length = match *bytes.first()? {
        opcode::CLOSE => 1,
        opcode::TRIP => TRIP_BYTES,
        opcode::BULK => 9,
        _ => bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4,
    };
    (bytes.len() >= length).then_some(length)
}

fn bulk(stream: &mut dyn Duplex, request: &[u8]) -> io::Result<()> {
    let length: [u8; 8] = request[1..].try_into().map_err(io::Error::other)?;
    let mut left = usize::try_from(u64::from_be_bytes(length)).map_err(io::Error::other)?;
    while left > 0 {
        let part = left.min(PATTERN.len());
        stream.write_all(&PATTERN[..part])?;
        left -= part;
    }
    Ok(())
}

fn answer() -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\
         content-length: {BODY_BYTES}\r\n\r\n"
    );
    [head.as_bytes(), &PATTERN[..BODY_BYTES]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_served_only_when_it_is_whole() {
        assert_eq!(length(&[opcode::CLOSE]), Some(1));
        assert_eq!(length(&[opcode::TRIP; 63]), None);
        assert_eq!(length(&[opcode::TRIP; 65]), Some(64));
        assert_eq!(length(&[opcode::BULK; 8]), None);
        assert_eq!(length(b"GET / HTTP/1.1\r\n\r\nGET"), Some(18));
        assert_eq!(length(b"GET / HTTP/1.1\r\n"), None);
    }
}
