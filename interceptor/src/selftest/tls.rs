//! TLS: another name, another address, and everything that two readers might read otherwise (T-17 to
//! T-29).

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use super::hello::{self, Hello};
use super::sys;
use super::talk;
use super::way::{
    ALLOWED, HTTP, NAMED, TLS, Target, WILD, Way, late, partly, shown as way, unlisted as elsewhere,
};

/// Longer than the sniff time-out (T-28).
const LATE: Duration = Duration::from_millis(5500);

pub(super) const WAYS: &[Way] = &[
    way("tls-forbidden-name", 25, "a forbidden name to an allowed address", |t| {
        show(&Hello::named(&t.forbidden()), t)
    }),
    way("tls-forbidden-name6", 25, "the same over IPv6", |t| {
        talk::tell(t.allowed_v6(TLS), &Hello::named(&t.forbidden()).record())
    }),
    elsewhere("tls-forbidden-address", 24, "an allowed name to a forbidden address", |t| {
        talk::tell(t.canary(TLS), &Hello::named(ALLOWED).record())
    }),
    elsewhere("tls-forbidden-address6", 24, "the same over IPv6", |t| {
        talk::tell(t.canary_v6(TLS), &Hello::named(ALLOWED).record())
    }),
    elsewhere(
        "tls-resolved-elsewhere",
        24,
        "a resolved name to an address that is not its own",
        |t| talk::tell(t.canary(TLS), &Hello::named(NAMED).record()),
    ),
    way("tls-resolved-here", 25, "a resolved name to another host's address", |t| {
        show(&Hello::named(NAMED), t)
    }),
    way("tls-no-name", 21, "no server_name", |t| show(&Hello::of(vec![]), t)),
    way("tls-empty-name", 21, "an empty name", |t| show(&Hello::named(""), t)),
    way("tls-empty-list", 21, "an empty list of names", |t| {
        show(&Hello::of(vec![hello::extension(hello::SERVER_NAME, &[0, 0])]), t)
    }),
    way("tls-two-names", 19, "an allowed and a forbidden name in one list", |t| {
        show(&Hello::of(vec![hello::names(&[(0, ALLOWED), (0, &t.forbidden())])]), t)
    }),
    way("tls-two-extensions", 19, "two server_name extensions", |t| {
        let names = [(0, ALLOWED)];
        let other = t.forbidden();
        show(&Hello::of(vec![hello::names(&names), hello::names(&[(0, &other)])]), t)
    }),
    way("tls-name-type", 19, "a name of unknown type first", |t| {
        show(&Hello::of(vec![hello::names(&[(7, &t.forbidden()), (0, ALLOWED)])]), t)
    }),
    partly("tls-second-hello", 19, "an allowed hello with a forbidden one behind it", |t| {
        let first = Hello::named(ALLOWED).record();
        talk::tell(t.allowed(TLS), &[first, Hello::named(&t.forbidden()).record()].concat())
    }),
    partly("tls-other-half", 17, "half of an allowed hello, then a forbidden one", |t| {
        let first = Hello::named(ALLOWED).record();
        let second = Hello::named(&t.forbidden()).record();
        let to = t.allowed(TLS);
        talk::tell_pieces(to, &[&first[..first.len() / 2], &second], Duration::from_millis(50))
    }),
    way("tls-one-byte-records", 17, "a forbidden name in records of one byte", |t| {
        talk::tell(t.allowed(TLS), &Hello::named(&t.forbidden()).records(1))
    }),
    way("tls-empty-records", 17, "empty records between", |t| {
        let bytes = Hello::named(&t.forbidden()).records_between(40, &[22, 3, 1, 0, 0]);
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-one-byte-segments", 17, "a forbidden name in segments of one byte", |t| {
        let bytes = Hello::named(&t.forbidden()).record();
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        talk::tell_pieces(t.allowed(TLS), &pieces, Duration::ZERO)
    }),
    way("tls-split-name", 17, "the name cut between two segments", |t| {
        let bytes = Hello::named(&t.forbidden()).record();
        let at = bytes.len() - 10;
        let pieces = [&bytes[..at], &bytes[at..]];
        talk::tell_pieces(t.allowed(TLS), &pieces, Duration::from_millis(50))
    }),
    way("tls-large", 18, "a forbidden name in a hello of 20 KiB", |t| {
        let name = hello::names(&[(0, &t.forbidden())]);
        let bytes = Hello::of(vec![hello::padding(20 << 10), name]).records(4096);
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-huge", 18, "a hello of more than 64 KiB", |t| {
        let name = hello::names(&[(0, &t.forbidden())]);
        let bytes = Hello::of(vec![name, hello::padding(60 << 10)]).records(64);
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-upper-case", 20, "a forbidden name in upper case", |t| {
        show(&Hello::named(&t.forbidden().to_uppercase()), t)
    }),
    way("tls-trailing-dot", 20, "a forbidden name with a dot behind it", |t| {
        show(&Hello::named(&format!("{}.", t.forbidden())), t)
    }),
    way("tls-nul", 20, "an allowed name, NUL, a forbidden one", |t| {
        show(&Hello::named(&format!("{ALLOWED}\0.{}", t.forbidden())), t)
    }),
    way("tls-slash", 20, "a slash behind an allowed name", |t| {
        show(&Hello::named(&format!("{ALLOWED}/{}", t.forbidden())), t)
    }),
    way("tls-userinfo", 20, "an allowed name as user information", |t| {
        show(&Hello::named(&format!("{ALLOWED}@{}", t.forbidden())), t)
    }),
    way("tls-name-port", 20, "an allowed name with a port", |t| {
        show(&Hello::named(&format!("{ALLOWED}:443")), t)
    }),
    way("tls-space", 20, "a space behind an allowed name", |t| {
        show(&Hello::named(&format!("{ALLOWED} ")), t)
    }),
    way("tls-percent", 20, "a percent-escape in a name", |t| {
        show(&Hello::named("allowed%2etest"), t)
    }),
    way("tls-non-ascii", 20, "a name that is not ASCII", |t| {
        show(&Hello::named("allowed.tést"), t)
    }),
    way("tls-two-dots", 20, "an empty label in a name", |t| {
        show(&Hello::named("allowed..test"), t)
    }),
    way("tls-long-name", 20, "a name of more than 253 bytes", |t| {
        let name = format!("{}{WILD}", "a2345678.".repeat(30));
        show(&Hello::named(&name), t)
    }),
    way("tls-ip-name", 20, "an IPv4 address as a name", |t| {
        show(&Hello::named(&Ipv4Addr::to_string(&t.allowed4)), t)
    }),
    way("tls-ip6-name", 20, "an IPv6 address as a name", |t| {
        show(&Hello::named(&format!("[{}]", t.allowed6)), t)
    }),
    way("tls-prefix", 22, "an allowed name with letters before it", |t| {
        show(&Hello::named(&format!("evil{ALLOWED}")), t)
    }),
    way("tls-suffix", 22, "an allowed name as the beginning of another", |t| {
        show(&Hello::named(&format!("{ALLOWED}.{}", t.forbidden())), t)
    }),
    way("tls-wildcard-parent", 22, "the bare parent of a wildcard", |t| {
        show(&Hello::named(WILD), t)
    }),
    way("tls-wildcard-letters", 22, "letters before the parent of a wildcard", |t| {
        show(&Hello::named(&format!("evil{WILD}")), t)
    }),
    way("tls-wildcard-itself", 22, "the wildcard as a name", |t| {
        show(&Hello::named(&format!("*.{WILD}")), t)
    }),
    way("tls-bad-length", 23, "an extension that is longer than it says", |t| {
        let mut bytes = Hello::named(ALLOWED).record();
        // The high byte of the name's length.
        let at = bytes.len() - ALLOWED.len() - 2;
        bytes[at] = 0xff;
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-trailing-bytes", 23, "bytes behind the extensions of a hello", |t| {
        let mut one = Hello::named(ALLOWED);
        one.trailing = t.token().to_vec();
        show(&one, t)
    }),
    way("tls-sslv2", 23, "a hello as SSLv2 had it", |t| {
        let body = [&[1, 3, 1, 0, 3, 0, 0, 0, 16, 0, 0, 4][..], &[7; 16]].concat();
        talk::tell(t.allowed(TLS), &[&[0x80, body.len() as u8][..], &body].concat())
    }),
    way("tls-dtls", 23, "a DTLS record", |t| {
        let mut bytes = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0];
        let message = Hello::named(ALLOWED).message();
        bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
        talk::tell(t.allowed(TLS), &[bytes, message].concat())
    }),
    way("tls-alert-first", 23, "an alert before the hello", |t| {
        let first = [&[21, 3, 3, 0, 2, 1, 0][..], &Hello::named(ALLOWED).record()].concat();
        talk::tell(t.allowed(TLS), &first)
    }),
    way("tls-data-first", 23, "application data before the hello", |t| {
        let mut first = vec![23, 3, 3, 0, t.token.len() as u8];
        first.extend_from_slice(t.token());
        talk::tell(t.allowed(TLS), &[first, Hello::named(ALLOWED).record()].concat())
    }),
    way("tls-not-tls", 27, "what is not TLS, on a TLS port", |t| {
        talk::tell(t.allowed(TLS), &[t.token(), b" is what I have to say\n"].concat())
    }),
    way("tls-http", 27, "HTTP on a TLS port", |t| {
        let text = format!("GET /{} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n", t.token);
        talk::tell(t.allowed(TLS), text.as_bytes())
    }),
    way("tls-proxy-header", 27, "a PROXY header before the hello", |t| {
        let to = t.allowed4;
        let header = format!("PROXY TCP4 {to} {to} {} {TLS}\r\n", t.port);
        let bytes = [header.as_bytes(), &Hello::named(ALLOWED).record()].concat();
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-starttls", 27, "STARTTLS before the hello", |t| {
        let bytes = [&b"EHLO x\r\nSTARTTLS\r\n"[..], &Hello::named(ALLOWED).record()].concat();
        talk::tell(t.allowed(TLS), &bytes)
    }),
    way("tls-on-http", 27, "a forbidden name on an HTTP port", |t| {
        talk::tell(t.allowed(HTTP), &Hello::named(&t.forbidden()).record())
    }),
    late("tls-late", 28, "no byte until after the time-out", |t| {
        talk::tell_pieces(t.allowed(TLS), &[b"", &Hello::named(&t.forbidden()).record()], LATE)
    }),
    late("tls-late-half", 28, "half a hello, the rest after the time-out", |t| {
        let bytes = Hello::named(&t.forbidden()).record();
        talk::tell_pieces(t.allowed(TLS), &[&bytes[..30], &bytes[30..]], LATE)
    }),
    late("tls-late-plain", 28, "half a hello, something else after the time-out", |t| {
        let bytes = Hello::named(ALLOWED).record();
        talk::tell_pieces(t.allowed(TLS), &[&bytes[..30], t.token()], LATE)
    }),
    way("tls-urgent", 29, "urgent data before a forbidden name", |t| {
        let to = t.allowed(TLS);
        let stream = talk::connected(talk::tcp(to)?, to)?;
        sys::send_to(&stream, b"!", libc::MSG_OOB, &[])?;
        Ok(talk::say(stream, &Hello::named(&t.forbidden()).record()))
    }),
    way("tls-fastopen", 2, "a forbidden name with the SYN (MSG_FASTOPEN)", |t| {
        let socket = talk::tcp(t.allowed(TLS))?;
        let to = sys::address_bytes(t.allowed(TLS));
        sys::send_to(&socket, &Hello::named(&t.forbidden()).record(), libc::MSG_FASTOPEN, &to)?;
        Ok(talk::say(socket, b""))
    }),
    way("tls-many-writers", 17, "two threads write a hello each", |t| {
        two_writers(t.allowed(TLS), t)
    }),
];

/// To the way's own allowed address.
fn show(hello: &Hello, t: &Target) -> io::Result<String> {
    talk::tell(t.allowed(TLS), &hello.record())
}

/// Both halves of two hellos, both forbidden, as the threads happen to mix them.
fn two_writers(to: SocketAddr, t: &Target) -> io::Result<String> {
    let stream = talk::connected(talk::tcp(to)?, to)?;
    let bytes = Hello::named(&t.forbidden()).record();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| bytes.chunks(7).try_for_each(|piece| (&stream).write_all(piece)));
        }
    });
    Ok(talk::say(stream, b""))
}
