//! Where one request ends and the next begins, by the strictest reading there is (T-32, T-33).
//!
//! The HTTP library forgives much: bare line feeds, folded lines, Content-Length beside
//! Transfer-Encoding. What it forgives, an upstream may read otherwise. So the raw bytes pass this
//! reader first, and only what has exactly one reading is released to the library. A head is held
//! back until it is complete; bodies stream.

/// A request head, its empty line included (T-37).
pub(super) const HEAD_MAX: usize = 64 * 1024;
/// Header fields in one head (T-37).
pub(super) const HEADERS_MAX: usize = 200;
/// Request target (T-37).
pub(super) const TARGET_MAX: usize = 32 * 1024;
/// A chunk's size line with its extensions, or one trailer line.
const BODY_LINE_MAX: usize = 8 * 1024;

/// Why bytes are not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Violation {
    /// More than one reading, or none.
    Malformed(&'static str),
    /// Beyond a limit of T-37.
    TooLarge,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(super) struct Framer {
    state: State,
}

#[derive(Debug)]
enum State {
    Head(Head),
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers {
        bytes: usize,
    },
    /// After a CONNECT: what follows is no HTTP, and no tunnel either.
    Ended,
}

/// A head read so far, line by line; offsets count from its first byte.
#[derive(Debug, Default)]
struct Head {
    line: usize,
    scanned: usize,
    request: Option<RequestLine>,
    headers: usize,
    content_length: Option<u64>,
    chunked: bool,
}

#[derive(Debug, Clone, Copy)]
struct RequestLine {
    http10: bool,
    connect: bool,
}

impl Framer {
    pub(super) fn new() -> Self {
        Self { state: State::Head(Head::default()) }
    }

    /// Whether the next byte starts a request (T-37: the head's deadline).
    pub(super) fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether nothing more is ever released.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// How many bytes at the front of `held` may be released. `held` must start with whatever the
    /// call before did not release. A violation is only reported once all before it is released.
    pub(super) fn admit(&mut self, held: &[u8]) -> Result<usize, Violation> {
        let mut at = 0;
        loop {
            match self.step(&held[at..]) {
                Ok(0) => return Ok(at),
                Ok(n) => at += n,
                Err(_) if at > 0 => return Ok(at),
                Err(violation) => return Err(violation),
            }
        }
    }

    /// Releases from the front of `bytes` what belongs to the current state; 0 = more is needed.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let (released, next) = match &mut self.state {
            State::Head(head) => match head.read(bytes)? {
                None => return Ok(0),
                Some((len, next)) => (len, Some(next)),
            },
            State::Fixed(left) => take(left, bytes, State::head()),
            State::ChunkData(left) => take(left, bytes, State::ChunkEnd),
            State::ChunkSize => match line(bytes, BODY_LINE_MAX)? {
                None => return Ok(0),
                Some(text) => {
                    let next = match chunk_size(text)? {
                        0 => State::Trailers { bytes: 0 },
                        size => State::ChunkData(size),
                    };
                    (text.len() + 2, Some(next))
                }
            },
            State::ChunkEnd => match bytes {
                [] | [b'\r'] => return Ok(0),
                [b'\r', b'\n', ..] => (2, Some(State::ChunkSize)),
                _ => return Err(Violation::Malformed("chunk does not end with CRLF")),
            },
            State::Trailers { bytes: seen } => match line(bytes, BODY_LINE_MAX)? {
                None => return Ok(0),
                Some([]) => (2, Some(State::head())),
                Some(text) => {
                    field(text)?;
                    *seen += text.len() + 2;
                    if *seen > HEAD_MAX {
                        return Err(Violation::TooLarge);
                    }
                    (text.len() + 2, None)
                }
            },
            State::Ended => return Ok(0),
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(released)
    }
}

impl State {
    fn head() -> Self {
        Self::Head(Head::default())
    }
}

/// Takes what belongs to a run of `left` bytes; `then` follows once all were taken.
fn take(left: &mut u64, bytes: &[u8], then: State) -> (usize, Option<State>) {
    let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= n as u64;
    (n, (*left == 0).then_some(then))
}

impl Head {
    /// Reads on. Once the head is complete: its length and what follows it.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<(usize, State)>, Violation> {
        while let Some(text) = self.next_line(bytes)? {
            let end = self.line + text.len() + 2;
            match self.request {
                None => self.request = Some(request_line(text)?),
                Some(request) if text.is_empty() => return Ok(Some((end, self.body(request)?))),
                Some(_) => self.header(text)?,
            }
            self.line = end;
            self.scanned = end;
        }
        if bytes.len() >= HEAD_MAX {
            return Err(Violation::TooLarge);
        }
        Ok(None)
    }

    /// The line at `self.line`, if its end is there. Looks at each byte once over all calls.
    fn next_line<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Violation> {
        while self.scanned < bytes.len().min(HEAD_MAX) {
            match (bytes[self.scanned], bytes.get(self.scanned + 1)) {
                (b'\r', Some(b'\n')) => return Ok(Some(&bytes[self.line..self.scanned])),
                (b'\r', None) => return Ok(None),
                (b'\r', Some(_)) => return Err(Violation::Malformed("bare CR")),
                (b'\n', _) => return Err(Violation::Malformed("bare LF")),
                _ => self.scanned += 1,
            }
        }
        if self.request.is_none() && self.scanned > TARGET_MAX {
            return Err(Violation::TooLarge);
        }
        Ok(None)
    }

    fn header(&mut self, text: &[u8]) -> Result<(), Violation> {
        self.headers += 1;
        if self.headers > HEADERS_MAX {
            return Err(Violation::TooLarge);
        }
        let (name, value) = field(text)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.content_length.replace(content_length(value)?).is_some() {
                return Err(Violation::Malformed("two Content-Length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                return Err(Violation::Malformed("two Transfer-Encoding"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::Malformed("Transfer-Encoding is not chunked"));
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// What follows the head.
    fn body(&self, request: RequestLine) -> Result<State, Violation> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(Violation::Malformed("Content-Length beside Transfer-Encoding")),
            (true, None) if request.http10 => {
                Err(Violation::Malformed("Transfer-Encoding in HTTP/1.0"))
            }
            _ if request.connect => Ok(State::Ended),
            (true, None) => Ok(State::ChunkSize),
            (false, None | Some(0)) => Ok(State::head()),
            (false, Some(length)) => Ok(State::Fixed(length)),
        }
    }
}

/// The line at the front of `bytes`, without its CRLF; `None` if its end is not there yet.
fn line(bytes: &[u8], max: usize) -> Result<Option<&[u8]>, Violation> {
    let Some(at) = bytes.iter().take(max).position(|b| matches!(b, b'\r' | b'\n')) else {
        return if bytes.len() >= max { Err(Violation::TooLarge) } else { Ok(None) };
    };
    match (bytes[at], bytes.get(at + 1)) {
        (b'\r', Some(b'\n')) => Ok(Some(&bytes[..at])),
        (b'\r', None) => Ok(None),
        _ => Err(Violation::Malformed("bare CR or LF")),
    }
}

/// RFC 9112 section 3, with single spaces only.
fn request_line(text: &[u8]) -> Result<RequestLine, Violation> {
    let mut parts = text.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::Malformed("request line is not three words"));
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Violation::Malformed("method"));
    }
    if target.len() > TARGET_MAX {
        return Err(Violation::TooLarge);
    }
    // A fragment is never sent by a client, and parsers differ on what to do with one.
    if target.is_empty()
        || target.iter().any(|b| *b <= b' ' || matches!(b, 0x7f | b'#'))
        || str::from_utf8(target).is_err()
    {
        return Err(Violation::Malformed("request target"));
    }
    let connect = method == b"CONNECT";
    let absolute = target.get(..7).is_some_and(|s| s.eq_ignore_ascii_case(b"http://"));
    let any_form = target.first() == Some(&b'/') || absolute;
    if !(any_form || connect || (method == b"OPTIONS" && target == b"*")) {
        return Err(Violation::Malformed("form of the request target"));
    }
    match version {
        b"HTTP/1.1" => Ok(RequestLine { http10: false, connect }),
        b"HTTP/1.0" => Ok(RequestLine { http10: true, connect }),
        _ => Err(Violation::Malformed("HTTP version")),
    }
}

/// Name and value of a header or trailer line (RFC 9112 section 5).
fn field(text: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let colon = text.iter().position(|b| *b == b':');
    let (name, value) = match colon {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => return Err(Violation::Malformed("header without a colon")),
    };
    // Folded lines and spaces before the colon fail here as well.
    if !is_name(name) {
        return Err(Violation::Malformed("header name"));
    }
    if value.iter().any(|b| (b.is_ascii_control() && *b != b'\t') || *b == 0x7f) {
        return Err(Violation::Malformed("control byte in a header"));
    }
    Ok((name, value.trim_ascii()))
}

/// Digits, nothing else, that no reader's integer overflows.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Violation> {
    if !(1..=18).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return Err(Violation::Malformed("Content-Length"));
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The size in a chunk's first line; extensions may follow a `;`.
fn chunk_size(text: &[u8]) -> Result<u64, Violation> {
    let (size, extensions) = match text.iter().position(|b| *b == b';') {
        Some(at) => text.split_at(at),
        None => (text, &[][..]),
    };
    if !(1..=15).contains(&size.len())
        || !size.iter().all(u8::is_ascii_hexdigit)
        || extensions.iter().any(|b| b.is_ascii_control() && *b != b'\t')
    {
        return Err(Violation::Malformed("chunk size"));
    }
    let digit = |b: u8| u64::from((b as char).to_digit(16).unwrap_or(0));
    Ok(size.iter().fold(0, |sum, b| sum * 16 + digit(*b)))
}

/// Whether a field may have this name (RFC 9110 section 5.1). The library takes others, too.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| is_token(*b))
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in pieces of `piece` and gives what came out, and why it ended.
    fn run(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<Violation>) {
        let (mut framer, mut held, mut out) = (Framer::new(), Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            held.extend_from_slice(piece);
            loop {
                match framer.admit(&held) {
                    Ok(0) => break,
                    Ok(n) => out.extend(held.drain(..n)),
                    Err(violation) => return (out, Some(violation)),
                }
            }
        }
        (out, None)
    }

    /// What has one reading passes whole, in whatever pieces it comes.
    #[test]
    fn plain_requests_pass() {
        let cases: [&[u8]; 10] = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a?b=%20 HTTP/1.0\r\n\r\n",
            b"GET http://a.com/x HTTP/1.1\r\nhost:a.com\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\n\r\n\n\0",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
              5;x=\"y\"\r\n\r\n\n\r\n\r\n0a\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 2\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: \xfc\t\r\nY:\r\n\r\n",
        ];
        for bytes in cases {
            for piece in [1, 2, 7, usize::MAX] {
                let got = run(bytes, piece);
                assert_eq!(got, (bytes.to_vec(), None), "{}", bytes.escape_ascii());
            }
        }
    }

    /// T-30, T-32, T-33: none of the bad head's bytes is released, in whatever pieces it comes.
    #[test]
    fn ambiguous_heads_stop() {
        let request = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
        let header = |line: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\nxx");
        let cases = [
            // T-33
            request("GET  / HTTP/1.1"),
            request("GET\t/ HTTP/1.1"),
            request("GET / HTTP/1.1 "),
            request(" GET / HTTP/1.1"),
            request("\r\nGET / HTTP/1.1"),
            request("GET /"),
            request("GET / HTTP/0.9"),
            request("GET / HTTP/3.0"),
            request("GET / HTTP/1.2"),
            request("GET / http/1.1"),
            request("GET /\0 HTTP/1.1"),
            request("GET /\r HTTP/1.1"),
            request("GET /\x7f HTTP/1.1"),
            request("GET /#a HTTP/1.1"),
            request("GE(T / HTTP/1.1"),
            request("GET a.com HTTP/1.1"),
            request("GET a.com:80 HTTP/1.1"),
            request("GET * HTTP/1.1"),
            request("GET https://a.com/ HTTP/1.1"),
            request("PRI * HTTP/2.0"),
            "GET / HTTP/1.1\nHost: a\n\n".into(),
            "GET / HTTP/1.1\r\nHost: a\n\r\n".into(),
            "GET / HTTP/1.1\rHost: a\r\n\r\n".into(),
            header("A : b"),
            header("A\t: b"),
            header(" A: b"),
            header("A: b\r\n folded"),
            header("A: b\r\n\tfolded"),
            header("A: b\0c"),
            header("A: b\rc"),
            header("A: b\x1bc"),
            header("A: b\x7f"),
            header("no colon"),
            header(": empty"),
            // T-32
            header("Content-Length: 2\r\nTransfer-Encoding: chunked"),
            header("Transfer-Encoding: chunked\r\nContent-Length: 2"),
            header("Content-Length: 2\r\nContent-Length: 3"),
            header("Content-Length: 2\r\ncontent-length: 2"),
            header("Content-Length: 2, 2"),
            header("Content-Length: +2"),
            header("Content-Length: -2"),
            header("Content-Length: 0x2"),
            header("Content-Length: 2 2"),
            header("Content-Length:"),
            header("Content-Length: 18446744073709551618"),
            header("Transfer-Encoding: gzip, chunked"),
            header("Transfer-Encoding: chunked, chunked"),
            header("Transfer-Encoding: xchunked"),
            header("Transfer-Encoding: chunked;q=1"),
            header("Transfer-Encoding: \x0bchunked"),
            header("Transfer-Encoding: identity"),
            header("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        ];
        let good = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
        for bad in cases {
            for piece in [1, 5, usize::MAX] {
                let (out, why) = run(bad.as_bytes(), piece);
                assert!(matches!(why, Some(Violation::Malformed(_))), "{bad:?}: {why:?}");
                assert_eq!(out, b"", "{bad:?}");
                // The same as a second, pipelined request.
                let (out, why) = run(format!("{good}{bad}").as_bytes(), piece);
                assert!(matches!(why, Some(Violation::Malformed(_))), "{bad:?}: {why:?}");
                assert_eq!(out, good.as_bytes(), "{bad:?}");
            }
        }
    }

    /// T-32: a chunk line that parsers may read differently ends the body before it.
    #[test]
    fn ambiguous_chunks_stop() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let cases = [
            ("", "5\nhello\r\n0\r\n\r\n"),
            ("", "+5\r\nhello"),
            ("", "0x5\r\nhello"),
            ("", "-1\r\n"),
            ("", " 5\r\nhello"),
            ("", "5 \r\nhello"),
            ("", "\r\n"),
            ("", "ffffffffffffffff1\r\n"),
            ("", "5;a=\nb\r\nhello"),
            ("5\r\nhello", "0\r\n\r\n"),
            ("5\r\nhello", "\n0\r\n\r\n"),
            ("5\r\nhello", "\rX"),
            ("5\r\nhello\r\n0\r\n", "A : b\r\n\r\n"),
            ("5\r\nhello\r\n0\r\n", "A: b\n\r\n"),
        ];
        for (good, bad) in cases {
            for piece in [1, usize::MAX] {
                let (out, why) = run(format!("{head}{good}{bad}").as_bytes(), piece);
                assert!(matches!(why, Some(Violation::Malformed(_))), "{bad:?}: {why:?}");
                assert_eq!(out, format!("{head}{good}").as_bytes(), "{bad:?}");
            }
        }
    }

    /// T-37.
    #[test]
    fn limits() {
        let headers = |n: usize, len: usize| {
            let one = format!("A: {}\r\n", "b".repeat(len));
            format!("GET / HTTP/1.1\r\n{}\r\n", one.repeat(n))
        };
        for fits in [headers(200, 100), headers(10, 6000)] {
            assert_eq!(run(fits.as_bytes(), 1000), (fits.into_bytes(), None));
        }
        let target = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(33_000));
        let endless = "GET / HTTP/1.1\r\nA: ".to_owned() + &"b".repeat(70_000);
        let chunk = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;".to_owned();
        let chunk = chunk + &"x".repeat(9000);
        for big in [headers(201, 1), headers(20, 6000), target, endless, chunk] {
            for piece in [1000, usize::MAX] {
                let (_, why) = run(big.as_bytes(), piece);
                assert_eq!(why, Some(Violation::TooLarge), "{}", &big[..60]);
            }
        }
    }

    /// T-35: nothing behind a CONNECT is read as a request.
    #[test]
    fn connect_ends() {
        let head = b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n";
        let (out, why) = run(&[&head[..], b"GET / HTTP/1.1\r\n\r\n"].concat(), usize::MAX);
        assert_eq!((out.as_slice(), why), (&head[..], None));
    }
}
