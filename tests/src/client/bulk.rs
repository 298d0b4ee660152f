//! Bodies of any size over HTTP, made and checked as they go.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};

use super::PATIENCE;
use crate::pattern;

/// Bytes moved at once.
const PIECE: usize = 64 * 1024;

/// Uploads `bytes` of the pattern; what the server says of them.
pub(super) fn upload(to: SocketAddr, host: &str, bytes: u64) -> Result<String> {
    let mut stream = connect(to)?;
    let head = format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut sent = 0;
    while sent < bytes {
        let left = usize::try_from(bytes - sent).map_or(PIECE, |left| left.min(PIECE));
        let piece = pattern::stretch(sent, left);
        stream.write_all(piece).with_context(|| format!("after {sent} bytes"))?;
        sent += piece.len() as u64;
    }
    let mut answer = BufReader::new(stream);
    let length = length_of_answer(&mut answer)?;
    let mut verdict = vec![0; usize::try_from(length)?];
    answer.read_exact(&mut verdict)?;
    Ok(String::from_utf8(verdict)?.trim_end().to_owned())
}

/// Downloads `bytes` of the pattern and compares them to the last.
pub(super) fn download(to: SocketAddr, host: &str, bytes: u64) -> Result<String> {
    let mut stream = connect(to)?;
    let head = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = BufReader::new(stream);
    let length = length_of_answer(&mut answer)?;
    if length != bytes {
        bail!("{length} bytes are announced");
    }
    let (mut got, mut piece) = (0, vec![0; PIECE]);
    while got < bytes {
        let left = usize::try_from(bytes - got).map_or(PIECE, |left| left.min(PIECE));
        let count = answer.read(&mut piece[..left])?;
        if count == 0 {
            bail!("the connection ended after {got} bytes");
        }
        if !pattern::matches(got, &piece[..count]) {
            bail!("not the pattern after {got} bytes");
        }
        got += count as u64;
    }
    Ok(format!("{got} intact"))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads an answer's head, which must be a 200; its Content-Length.
fn length_of_answer(answer: &mut impl BufRead) -> Result<u64> {
    let (mut length, mut head) = (None, String::new());
    loop {
        let start = head.len();
        if answer.read_line(&mut head)? == 0 {
            bail!("the connection ended in the head {head:?}");
        }
        let line = head[start..].trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse()?);
        }
        if line.is_empty() {
            break;
        }
    }
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{head:?} is no 200");
    }
    length.with_context(|| format!("{head:?} has no length"))
}
