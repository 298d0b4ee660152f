//! Whether bytes start a plaintext HTTP conversation (LIS-19, LIS-24).

use super::{Malformed, Scan};

/// Which HTTP a connection starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A request line of HTTP/1.x. Its version and everything behind the method are judged by the
    /// server that reads the whole head (LIS-18, T-33).
    Http1,
    /// The HTTP/2 connection preface (RFC 9113 section 3.4).
    Http2,
}

/// What a client of HTTP/2 with prior knowledge sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods that make a connection HTTP: the IANA registry (WebDAV and its kin among them), and the
/// few unregistered ones that Envoy's parser knows too. Any other token is not HTTP (LIS-24).
const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "M-SEARCH",
    "NOTIFY",
    "PURGE",
    "SOURCE",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
];

/// Reads the first bytes of a connection.
///
/// HTTP/1.x is certain with a known method, one space and the first byte of the target; HTTP/2 with
/// its whole preface. Both are decided within the first 24 bytes, so showing the whole prefix anew
/// with each piece costs nothing. A method is case-sensitive (RFC 9110 section 9.1), and nothing may
/// stand before it: an empty line or a space in front is not HTTP.
pub fn scan(prefix: &[u8]) -> Scan<Start> {
    if prefix.starts_with(PREFACE) {
        return Scan::Found(Start::Http2);
    }
    if PREFACE.starts_with(prefix) {
        return Scan::NeedMore;
    }
    for method in METHODS {
        let Some(rest) = prefix.strip_prefix(method.as_bytes()) else {
            if method.as_bytes().starts_with(prefix) {
                return Scan::NeedMore;
            }
            continue;
        };
        match rest {
            [] | [b' '] => return Scan::NeedMore,
            [b' ', target, ..] if target.is_ascii_graphic() => return Scan::Found(Start::Http1),
            [b' ', ..] => {
                return Scan::Malformed(Malformed("no request target after the HTTP method"));
            }
            // A longer method may begin with this one.
            _ => {}
        }
    }
    Scan::NotMine
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_TARGET: Scan<Start> =
        Scan::Malformed(Malformed("no request target after the HTTP method"));

    #[test]
    fn lis24_the_method_token_decides() {
        for (bytes, want) in [
            ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", Scan::Found(Start::Http1)),
            ("GET /", Scan::Found(Start::Http1)),
            ("GET ", Scan::NeedMore),
            ("GET", Scan::NeedMore),
            ("G", Scan::NeedMore),
            ("", Scan::NeedMore),
            ("OPTIONS * HTTP/1.1\r\n", Scan::Found(Start::Http1)),
            ("CONNECT a.test:443 HTTP/1.1\r\n", Scan::Found(Start::Http1)),
            ("GET http://a.test/ HTTP/1.1\r\n", Scan::Found(Start::Http1)),
            // HTTP/1.0, 0.9 and unknown versions are HTTP; the reader of the head refuses them.
            ("GET / HTTP/1.0\r\n\r\n", Scan::Found(Start::Http1)),
            ("GET /\r\n", Scan::Found(Start::Http1)),
            ("GET / HTTP/9.9\r\n", Scan::Found(Start::Http1)),
            // One method is the beginning of another.
            ("UPDATE /x", Scan::Found(Start::Http1)),
            ("UPDATEREDIRECTREF /x", Scan::Found(Start::Http1)),
            ("UPDATER", Scan::NeedMore),
            ("CHECKO", Scan::NeedMore),
            ("PROPFIND /dav", Scan::Found(Start::Http1)),
            ("PROPPATCH /dav", Scan::Found(Start::Http1)),
            ("MKCOL /dav", Scan::Found(Start::Http1)),
            ("VERSION-CONTROL /dav", Scan::Found(Start::Http1)),
            ("M-SEARCH * HTTP/1.1\r\n", Scan::Found(Start::Http1)),
            // Not HTTP.
            ("get / HTTP/1.1\r\n", Scan::NotMine),
            ("Get / HTTP/1.1\r\n", Scan::NotMine),
            ("GETS / HTTP/1.1\r\n", Scan::NotMine),
            ("GE / HTTP/1.1\r\n", Scan::NotMine),
            ("BREW /pot HTTP/1.1\r\n", Scan::NotMine),
            ("GET\t/ HTTP/1.1\r\n", Scan::NotMine),
            ("GET\r\n", Scan::NotMine),
            (" GET / HTTP/1.1\r\n", Scan::NotMine),
            ("\r\nGET / HTTP/1.1\r\n", Scan::NotMine),
            ("SSH-2.0-OpenSSH_9.9\r\n", Scan::NotMine),
            ("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", Scan::NotMine),
            ("EHLO a.test\r\n", Scan::NotMine),
            ("\0", Scan::NotMine),
            ("\x16\x03\x01", Scan::NotMine),
            // T-33: claims HTTP and has no target.
            ("GET  / HTTP/1.1\r\n", NO_TARGET),
            ("GET \t/ HTTP/1.1\r\n", NO_TARGET),
            ("GET \r\n", NO_TARGET),
            ("GET \0", NO_TARGET),
            ("GET é", NO_TARGET),
        ] {
            assert_eq!(scan(bytes.as_bytes()), want, "{bytes:?}");
        }
    }

    #[test]
    fn lis19_the_http2_preface_is_waited_for_whole() {
        for cut in 0..PREFACE.len() {
            assert_eq!(scan(&PREFACE[..cut]), Scan::NeedMore, "{cut}");
            let mut other = PREFACE[..=cut].to_vec();
            other[cut] ^= 0x80;
            assert_eq!(scan(&other), Scan::NotMine, "{cut}");
        }
        assert_eq!(scan(PREFACE), Scan::Found(Start::Http2));
        assert_eq!(scan(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat()), Scan::Found(Start::Http2));
        assert_eq!(scan(b"PRI * HTTP/1.1\r\n"), Scan::NotMine);
        assert_eq!(scan(b"PRI /"), Scan::NotMine);
    }

    #[test]
    fn every_method_is_found_at_its_first_target_byte_and_not_before() {
        for method in METHODS {
            let line = format!("{method} /");
            for cut in 0..line.len() {
                assert_eq!(scan(&line.as_bytes()[..cut]), Scan::NeedMore, "{method} {cut}");
            }
            assert_eq!(scan(line.as_bytes()), Scan::Found(Start::Http1), "{method}");
        }
    }

    proptest! {
        /// What is certain stays so, whatever follows: the answer does not depend on the pieces.
        #[test]
        fn an_answer_never_changes(
            method in proptest::sample::select(METHODS),
            rest in proptest::collection::vec(any::<u8>(), 0..40),
            flip in 0usize..60,
        ) {
            let mut bytes = [method.as_bytes(), b" ", &rest].concat();
            if let Some(byte) = bytes.get_mut(flip) {
                *byte ^= 1;
            }
            let whole = scan(&bytes);
            let early = (0..bytes.len()).map(|cut| scan(&bytes[..cut])).find(|s| *s != Scan::NeedMore);
            prop_assert_eq!(early.unwrap_or(whole.clone()), whole);
        }

        #[test]
        fn it_always_decides_within_a_preface(bytes in proptest::collection::vec(any::<u8>(), 24..64)) {
            prop_assert_ne!(scan(&bytes), Scan::NeedMore);
        }
    }
}
