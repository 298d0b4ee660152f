//! HTTP: another host, and requests that two parsers would read as different ones (T-30 to T-38).

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use super::talk;
use super::way::{
    ALLOWED, HTTP, NAMED, TCP, Target, Way, partly, shown as way, unlisted as elsewhere,
};

pub(super) const WAYS: &[Way] = &[
    way("http-forbidden-host", 25, "a forbidden host at an allowed address", |t| {
        ask(t, &get(&t.forbidden(), ""))
    }),
    way("http-forbidden-host6", 25, "the same over IPv6", |t| {
        talk::tell(t.allowed_v6(HTTP), get(&t.forbidden(), "").as_bytes())
    }),
    elsewhere("http-forbidden-address", 24, "an allowed host at a forbidden address", |t| {
        talk::tell(t.canary(HTTP), get(ALLOWED, "").as_bytes())
    }),
    elsewhere("http-resolved-elsewhere", 24, "a resolved host at an address not its own", |t| {
        talk::tell(t.canary(HTTP), get(NAMED, "").as_bytes())
    }),
    elsewhere("http-redirect", 38, "follows a redirect out", |t| {
        let path = format!("redirect/{}", t.canary(TCP));
        talk::tell(t.allowed(HTTP), get_path(&path, ALLOWED, "").as_bytes())?;
        talk::tell(t.canary(TCP), get(&t.canary(TCP).to_string(), "").as_bytes())
    }),
    partly("http-two-hosts", 30, "two Host headers, the forbidden one last", |t| {
        ask(t, &get(ALLOWED, &format!("Host: {}\r\n", t.forbidden())))
    }),
    partly("http-two-hosts-first", 30, "two Host headers, the forbidden one first", |t| {
        ask(t, &get(&t.forbidden(), &format!("Host: {ALLOWED}\r\n")))
    }),
    way("http-no-host", 30, "no Host", |t| ask(t, &format!("GET /{} HTTP/1.1\r\n\r\n", t.token))),
    way("http-empty-host", 30, "an empty Host", |t| ask(t, &get("", ""))),
    way("http-absolute", 30, "a forbidden absolute form, an allowed Host", |t| {
        let line = format!("GET http://{}/ HTTP/1.1\r\n", t.forbidden());
        ask(t, &format!("{line}Host: {ALLOWED}\r\n\r\n"))
    }),
    way("http-absolute-host", 30, "an allowed absolute form, a forbidden Host", |t| {
        let host = t.forbidden();
        ask(t, &format!("GET http://{ALLOWED}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }),
    way("http-userinfo", 30, "an allowed name as user information", |t| {
        ask(t, &get(&format!("{ALLOWED}@{}", t.forbidden()), ""))
    }),
    way("http-userinfo-behind", 30, "a forbidden name as user information", |t| {
        ask(t, &get(&format!("{}@{ALLOWED}", t.forbidden()), ""))
    }),
    way("http-port", 30, "a port that is not the connection's", |t| {
        ask(t, &get(&format!("{ALLOWED}:8081"), ""))
    }),
    way("http-bad-port", 30, "a port that is none", |t| {
        ask(t, &get(&format!("{ALLOWED}:80x{}", t.token), ""))
    }),
    way("http-comma", 30, "two hosts in one header", |t| {
        ask(t, &get(&format!("{ALLOWED}, {}", t.forbidden()), ""))
    }),
    way("http-path-in-host", 30, "a path in Host", |t| {
        ask(t, &get(&format!("{ALLOWED}/{}", t.forbidden()), ""))
    }),
    way("http-host-ip", 30, "the canary's address as Host", |t| {
        ask(t, &get(&t.canary4.to_string(), ""))
    }),
    way("http-host-brackets", 30, "a name in brackets", |t| {
        ask(t, &get(&format!("[{ALLOWED}]"), ""))
    }),
    way("http-loopback-host", 12, "the daemon's loopback as Host", |t| {
        ask(t, &get("127.0.0.1:15000", ""))
    }),
    way("http-10-no-host", 30, "HTTP/1.0 without a host", |t| {
        ask(t, &format!("GET /{} HTTP/1.0\r\n\r\n", t.token))
    }),
    way("http-09", 30, "HTTP/0.9", |t| ask(t, &format!("GET /{}\r\n", t.token))),
    partly("http-pipelined", 31, "a forbidden request pipelined behind an allowed one", |t| {
        ask(t, &[get(ALLOWED, ""), get(&t.forbidden(), "")].concat())
    }),
    partly("http-second", 31, "a forbidden request after an allowed one was answered", |t| {
        let to = t.allowed(HTTP);
        let mut stream = talk::connected(talk::tcp(to)?, to)?;
        stream.write_all(get(ALLOWED, "").as_bytes())?;
        // The first answer is small and comes whole.
        stream.set_read_timeout(Some(talk::PATIENCE))?;
        io::Read::read(&mut stream, &mut [0; 4096])?;
        Ok(talk::say(stream, get(&t.forbidden(), "").as_bytes()))
    }),
    partly("http-cl-te", 32, "Content-Length beside Transfer-Encoding", |t| {
        smuggle(t, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")
    }),
    partly("http-te-cl", 32, "Transfer-Encoding beside Content-Length", |t| {
        smuggle(t, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")
    }),
    partly("http-te-twisted", 32, "a Transfer-Encoding that is almost chunked", |t| {
        smuggle(t, "Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n", "")
    }),
    partly("http-te-10", 32, "chunked in HTTP/1.0", |t| {
        let inner = get(&t.forbidden(), "");
        let head = format!("POST / HTTP/1.0\r\nHost: {ALLOWED}\r\n");
        ask(t, &format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"))
    }),
    partly("http-two-lengths", 32, "two Content-Lengths", |t| {
        smuggle(t, "Content-Length: 0\r\nContent-Length: 500\r\n", "")
    }),
    partly("http-signed-length", 32, "a signed Content-Length", |t| {
        smuggle(t, "Content-Length: +0\r\n", "")
    }),
    partly("http-chunk-size", 32, "a chunk size with more behind it", |t| {
        smuggle(t, "Transfer-Encoding: chunked\r\n", "0_1\r\n\r\n")
    }),
    partly("http-chunk-lf", 32, "a chunk line that ends in a bare LF", |t| {
        smuggle(t, "Transfer-Encoding: chunked\r\n", "0\n\n")
    }),
    partly("http-bare-lf", 33, "lines that end in a bare LF", |t| {
        ask(t, &get(ALLOWED, &format!("A: b\nHost: {}\r\n", t.forbidden())))
    }),
    partly("http-bare-cr", 33, "a bare CR in a header", |t| {
        ask(t, &get(ALLOWED, &format!("A: b\rHost: {}\r\n", t.forbidden())))
    }),
    partly("http-nul", 33, "a NUL in a header", |t| {
        ask(t, &get(ALLOWED, &format!("A: b\0{}\r\n", t.token)))
    }),
    partly("http-fold", 33, "a folded header", |t| {
        ask(t, &get(ALLOWED, &format!("A: b\r\n Host: {}\r\n", t.forbidden())))
    }),
    partly("http-space-colon", 33, "a space before the colon", |t| {
        ask(t, &get(ALLOWED, &format!("Host : {}\r\n", t.forbidden())))
    }),
    partly("http-leading-space", 33, "a space before the first header", |t| {
        let host = t.forbidden();
        ask(t, &format!("GET / HTTP/1.1\r\n Host: {host}\r\nHost: {ALLOWED}\r\n\r\n"))
    }),
    partly("http-tab-line", 33, "tabs in the request line", |t| {
        ask(t, &format!("GET\t/{}\tHTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n", t.token))
    }),
    partly("http-version", 33, "a version that nobody knows", |t| {
        ask(t, &format!("GET /{} HTTP/1.9\r\nHost: {ALLOWED}\r\n\r\n", t.token))
    }),
    partly("http-upgrade", 34, "bytes behind an upgrade that was not granted", |t| {
        let more = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        ask(t, &[&get(ALLOWED, more), &t.token].map(String::as_str).concat())
    }),
    partly("http-h2c", 34, "an upgrade to h2c, HTTP/2 behind it", |t| {
        let more = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: {}\r\n",
            t.token
        );
        ask_bytes(t, &[get(ALLOWED, &more).into_bytes(), http2(&t.forbidden(), None)].concat())
    }),
    partly("http-odd-upgrade", 34, "an upgrade to a protocol of its own", |t| {
        let upgrade = format!("Connection: Upgrade\r\nUpgrade: {}\r\n", t.token);
        ask(t, &get(ALLOWED, &upgrade))
    }),
    way("http-connect", 35, "CONNECT to the canary", |t| {
        let to = t.canary(TCP);
        ask(t, &format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n{}", t.token))
    }),
    way("http-connect-allowed", 35, "CONNECT to the canary, an allowed Host", |t| {
        let to = t.canary(TCP);
        ask(t, &format!("CONNECT {to} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n{}", t.token))
    }),
    way("http2-forbidden", 36, "HTTP/2 with a forbidden authority", |t| {
        ask_bytes(t, &http2(&t.forbidden(), None))
    }),
    way("http2-two-hosts", 36, "HTTP/2 with an allowed authority and a forbidden host", |t| {
        ask_bytes(t, &http2(ALLOWED, Some(&t.forbidden())))
    }),
    way("http-not-http", 27, "what is not HTTP, on an HTTP port", |t| {
        ask(t, &format!("{} is what I have to say\r\n\r\n", t.token))
    }),
    way("http-proxy-header", 27, "a PROXY header before a request", |t| {
        let (to, port) = (t.allowed4, t.port);
        let header = format!("PROXY TCP4 {to} {to} {port} {HTTP}\r\n");
        ask(t, &format!("{header}{}", get(ALLOWED, "")))
    }),
    way("http-one-byte", 30, "a forbidden host in segments of one byte", |t| {
        let text = get(&t.forbidden(), "");
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        talk::tell_pieces(t.allowed(HTTP), &pieces, Duration::ZERO)
    }),
    way("http-large-head", 37, "a forbidden host behind 64 KiB of head", |t| {
        let (padding, host) = ("x".repeat(66_000), t.forbidden());
        ask(t, &format!("GET / HTTP/1.1\r\nA: {padding}\r\nHost: {host}\r\n\r\n"))
    }),
];

/// To the way's own allowed address.
fn ask(t: &Target, text: &str) -> io::Result<String> {
    ask_bytes(t, text.as_bytes())
}

fn ask_bytes(t: &Target, bytes: &[u8]) -> io::Result<String> {
    talk::tell(to(t), bytes)
}

fn to(t: &Target) -> SocketAddr {
    t.allowed(HTTP)
}

/// A request for `/`; `more` are whole header lines.
pub(super) fn get(host: &str, more: &str) -> String {
    get_path("", host, more)
}

pub(super) fn get_path(path: &str, host: &str, more: &str) -> String {
    format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
}

/// An allowed request whose end is unclear, and a forbidden one behind it.
fn smuggle(t: &Target, framing: &str, body: &str) -> io::Result<String> {
    let inner = get(&t.forbidden(), "");
    ask(t, &format!("POST / HTTP/1.1\r\nHost: {ALLOWED}\r\n{framing}\r\n{body}{inner}"))
}

/// A preface, empty settings, and one GET (RFC 9113), its header fields as literals (RFC 7541).
fn http2(authority: &str, host: Option<&str>) -> Vec<u8> {
    const GET: u8 = 0x82;
    const HTTP: u8 = 0x86;
    const ROOT: u8 = 0x84;
    const AUTHORITY: u8 = 0x41;
    // Field 38 of the static table, not indexed.
    const HOST: [u8; 2] = [0x0f, 38 - 15];
    const END_OF_STREAM_AND_HEADERS: u8 = 0x05;
    let mut block = vec![GET, HTTP, ROOT, AUTHORITY, authority.len() as u8];
    block.extend_from_slice(authority.as_bytes());
    if let Some(host) = host {
        block.extend_from_slice(&HOST);
        block.push(host.len() as u8);
        block.extend_from_slice(host.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, END_OF_STREAM_AND_HEADERS, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}
