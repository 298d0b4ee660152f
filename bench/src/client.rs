//! One client connection: opening it, and one operation on it. Blocking, so that a round trip costs
//! two system calls and nothing of ours. Every byte that comes back is compared.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::job::{BODY_BYTES, BULK_BYTES, Job, PATTERN, TRIP_BYTES, opcode};

/// After so long without a byte a connection counts as hung.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stream in both directions.
pub(crate) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// What clients speak TLS with: only this authority is believed, and every handshake is a whole one.
pub(crate) fn tls(authority: &Path) -> Result<Arc<ClientConfig>> {
    let certificate = CertificateDer::from_pem_file(authority)
        .with_context(|| format!("the authority in {}", authority.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects, and completes the TLS handshake where the job has one.
pub(crate) fn open(job: &Job, tls: &Arc<ClientConfig>) -> io::Result<Box<dyn Duplex>> {
    let mut socket = TcpStream::connect(job.to)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if !job.tls {
        return Ok(Box::new(socket));
    }
    let name = ServerName::try_from(job.name.clone()).map_err(Error::other)?;
    let mut client = ClientConnection::new(Arc::clone(tls), name).map_err(Error::other)?;
    while client.is_handshaking() {
        client.complete_io(&mut socket)?;
    }
    Ok(Box::new(StreamOwned::new(client, socket)))
}

/// One byte there and back, after which the server closes.
pub(crate) fn one_byte(stream: &mut dyn Duplex) -> io::Result<u64> {
    stream.write_all(&[opcode::CLOSE])?;
    let mut answer = [0; 2];
    let mut have = 0;
    // To the end: whoever closes first keeps the port for a minute, and that should be the server.
    loop {
        match stream.read(&mut answer[have..])? {
            0 => break,
            more => have += more,
        }
        same(&answer[..have.min(1)], &[opcode::CLOSE])?;
        if have == answer.len() {
            return Err(wrong("more came back than was asked for"));
        }
    }
    if have == 1 { Ok(1) } else { Err(wrong("closed without the byte that was asked for")) }
}

/// 64 bytes there and back; `number` makes each message another one.
pub(crate) fn round_trip(stream: &mut dyn Duplex, number: u64) -> io::Result<u64> {
    let mut message = [0; TRIP_BYTES];
    message[0] = opcode::TRIP;
    message[1..9].copy_from_slice(&number.to_be_bytes());
    stream.write_all(&message)?;
    let mut answer = [0; TRIP_BYTES];
    stream.read_exact(&mut answer)?;
    same(&answer, &message)?;
    Ok(TRIP_BYTES as u64)
}

/// [`BULK_BYTES`] from the server, into `buffer`.
pub(crate) fn bulk(stream: &mut dyn Duplex, buffer: &mut [u8]) -> io::Result<u64> {
    let mut request = [opcode::BULK; 9];
    request[1..].copy_from_slice(&BULK_BYTES.to_be_bytes());
    stream.write_all(&request)?;
    let mut left = usize::try_from(BULK_BYTES).map_err(Error::other)?;
    while left > 0 {
        let part = left.min(PATTERN.len());
        stream.read_exact(&mut buffer[..part])?;
        same(&buffer[..part], &PATTERN[..part])?;
        left -= part;
    }
    Ok(BULK_BYTES)
}

/// The request that is sent again and again.
pub(crate) fn request_text(name: &str) -> Vec<u8> {
    format!("GET /bench HTTP/1.1\r\nhost: {name}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
        .into()
}

/// One request and its answer.
pub(crate) fn request(stream: &mut dyn Duplex, text: &[u8], buffer: &mut [u8]) -> io::Result<u64> {
    stream.write_all(text)?;
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..])? {
            0 => return Err(wrong("closed before the answer was whole")),
            more => have += more,
        }
        if let Some(body) = body(&buffer[..have])? {
            same(body, &PATTERN[..BODY_BYTES])?;
            return Ok(BODY_BYTES as u64);
        }
    }
}

/// The body of a whole answer; none yet where some of it is missing.
fn body(answer: &[u8]) -> io::Result<Option<&[u8]>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(answer).map_err(Error::other)? else {
        return Ok(None);
    };
    if head.code != Some(200) {
        return Err(wrong(&format!("answered with status {:?}", head.code)));
    }
    let length = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    if length.is_none_or(|length| length.value != BODY_BYTES.to_string().as_bytes()) {
        return Err(wrong("the answer has another content-length"));
    }
    Ok((answer.len() >= start + BODY_BYTES).then(|| &answer[start..]))
}

/// Whether this is how a connection ends that somebody refuses.
pub(crate) fn is_refusal(error: &Error) -> bool {
    use ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, PermissionDenied,
        UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | PermissionDenied
            | UnexpectedEof
    )
}

fn same(found: &[u8], expected: &[u8]) -> io::Result<()> {
    if found == expected { Ok(()) } else { Err(wrong("other bytes came back than were sent")) }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_when_all_of_it_is_right() {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
        let mut answer = head.clone().into_bytes();
        assert!(body(&answer).expect("so far right").is_none());
        answer.extend_from_slice(&PATTERN[..BODY_BYTES]);
        assert_eq!(body(&answer).expect("right"), Some(&PATTERN[..BODY_BYTES]));
        assert!(body(head.replace("200", "502").as_bytes()).is_err());
        assert!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nrefused").is_err());
    }

    #[test]
    fn what_hangs_or_is_garbled_is_no_refusal() {
        for kind in [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::InvalidData] {
            assert!(!is_refusal(&Error::from(kind)), "{kind}");
        }
        assert!(is_refusal(&Error::from(ErrorKind::ConnectionAborted)));
    }
}
