//! Jobs that start with a TLS hello.

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, send};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use super::PATIENCE;
use crate::pattern;

/// Bytes moved at once.
const BUFFER: usize = 64 * 1024;
/// Bytes of a TLS record's header: type, version, length.
const RECORD_HEADER: usize = 5;
/// The number of the extension encrypted_client_hello.
const ECH: u16 = 0xfe0d;

/// How a hello is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) segment: usize,
    pub(super) record: usize,
    pub(super) pause: Duration,
    pub(super) grow: usize,
    /// One byte that does not belong to the hello is sent as urgent behind so many of its own.
    pub(super) urgent: Option<usize>,
}

pub(super) fn hello(to: SocketAddr, name: &str, cut: Cut) -> Result<String> {
    let (mut connection, mut bytes) = first_flight(name, cut.grow)?;
    if cut.record > 0 {
        bytes = refragment(&bytes, cut.record);
    }
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let segment = if cut.segment == 0 { bytes.len() } else { cut.segment };
    let (before, bytes) = bytes.split_at(cut.urgent.unwrap_or(0).min(bytes.len()));
    if cut.urgent.is_some() {
        stream.write_all(before).context("sending the hello")?;
        send(stream.as_raw_fd(), b"X", MsgFlags::MSG_OOB).context("sending an urgent byte")?;
    }
    for piece in bytes.chunks(segment) {
        stream.write_all(piece).context("sending the hello")?;
        thread::sleep(cut.pause);
    }
    let mut tls = Stream::new(&mut connection, &mut stream);
    write!(tls, "GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")
        .context("the handshake")?;
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).context("the answer")?;
    let status = String::from_utf8_lossy(&answer[9..]).into_owned();
    Ok(format!("{status} after a hello of {} bytes", before.len() + bytes.len()))
}

pub(super) fn hold(to: SocketAddr, name: &str) -> Result<String> {
    let (mut connection, first) = first_flight(name, 0)?;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.write_all(&first).context("sending the hello")?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).context("the handshake")?;
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("waiting")?;
    Ok("closed by the other end".into())
}

pub(super) fn echo(to: SocketAddr, name: Option<&str>, ech: bool, bytes: u64) -> Result<String> {
    let mut first = match name {
        Some(name) => first_flight(name, 0)?.1,
        None => Vec::new(),
    };
    if ech {
        first = with_extension(first, ECH, &[0; 16])?;
    }
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The pattern comes after the hello's answer: right behind a hello it would be no TLS, and be
    // refused as such (T-23).
    stream.write_all(&first)?;
    let mut returned = vec![0; first.len()];
    stream.read_exact(&mut returned).context("the hello's echo")?;
    if returned != first {
        bail!("the hello came back changed");
    }
    let mut sending = stream.try_clone()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let (mut sent, mut buffer) = (0, vec![0; BUFFER]);
        while sent < bytes {
            let length = usize::try_from(bytes - sent).map_or(BUFFER, |left| left.min(BUFFER));
            pattern::fill(sent, &mut buffer[..length]);
            sending.write_all(&buffer[..length])?;
            sent += length as u64;
        }
        sending.shutdown(Shutdown::Write)
    });

    let (mut total, mut buffer) = (0, vec![0; BUFFER]);
    loop {
        let length = stream.read(&mut buffer).with_context(|| format!("after {total} bytes"))?;
        if length == 0 {
            break;
        }
        if !pattern::matches(total, &buffer[..length]) {
            bail!("corrupt between byte {total} and {}", total + length as u64);
        }
        total += length as u64;
    }
    match sender.join() {
        Ok(sent) => sent.context("sending")?,
        Err(_) => bail!("the sender panicked"),
    }
    if total != bytes {
        bail!("{total} of {bytes} bytes came back before the end of the stream");
    }
    Ok(format!("{total} intact"))
}

/// A connection for `name` and the bytes of its hello, at least `grow` long.
fn first_flight(name: &str, grow: usize) -> Result<(ClientConnection, Vec<u8>)> {
    let mut connection = client(name, grow)?;
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    Ok((connection, bytes))
}

/// A connection for `name` whose hello is at least `grow` bytes long.
pub(super) fn client(name: &str, grow: usize) -> Result<ClientConnection> {
    let name = ServerName::try_from(name.to_owned())?;
    Ok(ClientConnection::new(Arc::new(client_config(grow)?), name)?)
}

/// A client whose hellos are at least `grow` long. The authority is the one in `SSL_CERT_FILE`.
pub(super) fn client_config(grow: usize) -> Result<ClientConfig> {
    let file = env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // The name that the server takes, last; before it, ones that only make the hello long.
    config.alpn_protocols = (0..grow.div_ceil(201)).map(|n| format!("{n:0>200}").into()).collect();
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(config)
}

/// A hello of one record with one more extension at its end.
fn with_extension(mut hello: Vec<u8>, kind: u16, data: &[u8]) -> Result<Vec<u8>> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    // Record, handshake header, version and random; then session id, suites and compression.
    let mut at = RECORD_HEADER + 4 + 2 + 32;
    for width in [1, 2, 1] {
        let length = hello.get(at..at + width).context("a hello")?;
        at += width + number(length);
    }
    let mut extension = kind.to_be_bytes().to_vec();
    extension.extend_from_slice(&u16::try_from(data.len())?.to_be_bytes());
    extension.extend_from_slice(data);
    // Every length around it: of the record, the handshake message, the extensions.
    for (at, width) in [(3, 2), (RECORD_HEADER + 1, 3), (at, 2)] {
        let field = hello.get_mut(at..at + width).context("a hello")?;
        let longer = u32::try_from(number(field) + extension.len())?.to_be_bytes();
        field.copy_from_slice(&longer[4 - width..]);
    }
    hello.extend_from_slice(&extension);
    Ok(hello)
}

/// The same handshake bytes in records of at most `size` bytes each.
fn refragment(records: &[u8], size: usize) -> Vec<u8> {
    let (mut handshake, mut rest) = (Vec::new(), records);
    while rest.len() > RECORD_HEADER {
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        handshake.extend_from_slice(&rest[RECORD_HEADER..RECORD_HEADER + length]);
        rest = &rest[RECORD_HEADER + length..];
    }
    let mut out = Vec::new();
    for piece in handshake.chunks(size) {
        let length = u16::try_from(piece.len()).expect("a record holds at most 16 KiB");
        out.extend_from_slice(&records[..3]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refragmenting_keeps_the_handshake_bytes() {
        let records = [&[22, 3, 1, 0, 3][..], b"abc", &[22, 3, 1, 0, 2], b"de"].concat();
        let cut = refragment(&records, 2);
        let expected =
            [&[22, 3, 1, 0, 2][..], b"ab", &[22, 3, 1, 0, 2], b"cd", &[22, 3, 1, 0, 1], b"e"];
        assert_eq!(cut, expected.concat());
    }
}
