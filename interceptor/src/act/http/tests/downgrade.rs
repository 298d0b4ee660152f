//! HTTP/2 written by hand, as no library writes it (T-36): heads with more than one reading, and
//! floods.

use super::http2::connect;
use super::*;
use crate::account::Captured;

/// What a client says first: the preface, and empty SETTINGS.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let head = [&length[1..], &[kind, flags][..], &stream.to_be_bytes()[..]].concat();
    [head.as_slice(), payload].concat()
}

/// HPACK: fields in the order given, none indexed, none compressed (RFC 7541 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            if text.len() < 127 {
                block.push(text.len() as u8);
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A request's head in as many frames as it takes.
fn head(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let block = block(fields);
    let mut pieces = block.chunks(16_000).peekable();
    let mut frames = Vec::new();
    let (mut kind, mut flags) = (HEADERS, flags & END_STREAM);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend(frame(kind, flags | last, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    frames
}

/// The four fields of a GET for `a.com`, then `more`.
fn get<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let usual = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.com")];
    [&usual[..], more].concat()
}

/// Kind and stream of the next frame; `None`: the connection has ended.
async fn next_frame(stream: &mut TcpStream) -> Option<(u8, u32)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("a length")];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

/// How stream 1 ends, or the connection: by HEADERS, RST_STREAM or GOAWAY.
async fn outcome(stream: &mut TcpStream) -> Option<u8> {
    let found = async {
        loop {
            match next_frame(stream).await {
                Some((kind @ (HEADERS | RST_STREAM), 1)) | Some((kind @ GOAWAY, 0)) => {
                    return Some(kind);
                }
                Some(_) => {}
                None => return None,
            }
        }
    };
    timeout(PATIENCE, found).await.expect("in time")
}

/// A stub that speaks HTTP/1.1, and names that lead there.
async fn translating() -> (Stub, Names) {
    let stub = Stub::saying("ok").await;
    let names = Names::default().allow("a.com", stub.at).allow("b.com", stub.at);
    let names = names.traffic(|traffic| traffic.protocol = UpstreamProtocol::Http1);
    (stub, names)
}

async fn ask(names: &Names, request: &[u8]) -> (Option<u8>, Captured) {
    let (mut stream, captured, _serving) = connect(names).await;
    stream.write_all(&[HELLO, request].concat()).await.expect("writes");
    let outcome = outcome(&mut stream).await;
    (outcome, captured)
}

/// T-36, T-32, T-33: nothing of a head that HTTP/1.1 could read otherwise reaches an upstream.
#[tokio::test]
async fn ambiguous_heads() {
    let (stub, names) = translating().await;
    let with = |name, value| {
        let changed = get(&[]).into_iter().map(|field| match field {
            (had, _) if had == name => (name, value),
            field => field,
        });
        changed.collect::<Vec<_>>()
    };
    let cases: Vec<Vec<(&str, &str)>> = vec![
        // The body that HTTP/1.1 would expect does not come, or comes otherwise.
        get(&[("content-length", "5")]),
        get(&[("content-length", "")]),
        get(&[("content-length", "+0")]),
        get(&[("content-length", "0"), ("content-length", "0")]),
        get(&[("content-length", "0, 0")]),
        get(&[("content-length", "0"), ("content-length", "5")]),
        get(&[("transfer-encoding", "chunked")]),
        get(&[("transfer-encoding", "identity")]),
        get(&[("connection", "close")]),
        get(&[("connection", "x-a"), ("x-a", "1")]),
        get(&[("keep-alive", "5")]),
        get(&[("proxy-connection", "close")]),
        get(&[("upgrade", "websocket")]),
        get(&[("te", "gzip")]),
        // Lines of their own.
        get(&[("x-a", "b\r\nHost: b.com")]),
        get(&[("x-a", "b\nc")]),
        get(&[("x-a", "b\0c")]),
        get(&[("x-a\r\nhost", "b.com")]),
        get(&[("x-a:b", "c")]),
        get(&[("x a", "b")]),
        get(&[("X-A", "b")]),
        get(&[("", "b")]),
        with(":method", "GET /x HTTP/1.1\r\nX:"),
        with(":method", ""),
        with(":path", ""),
        with(":path", "*"),
        with(":path", "x"),
        with(":path", "/a b"),
        with(":path", "/ HTTP/1.1\r\nHost: b.com\r\n\r\n"),
        with(":path", "/\t"),
        with(":path", "/\0"),
        with(":path", "http://b.com/"),
        with(":path", "?x"),
        // Whose request is it?
        with(":authority", ""),
        with(":authority", "u@a.com"),
        with(":authority", "a.com,b.com"),
        with(":authority", "a.com\r\nX: y"),
        get(&[("host", "b.com")]),
        get(&[("host", "a.com"), ("host", "a.com")]),
        get(&[(":authority", "b.com")]),
        get(&[(":path", "/b")]),
        get(&[("x-a", "b"), (":authority", "b.com")]),
        [&[("x-a", "b")][..], &get(&[])].concat(),
        get(&[(":foo", "b")]),
        get(&[(":status", "200")]),
        get(&[(":protocol", "websocket")]),
        [&get(&[])[1..], &[(":method", "CONNECT")]].concat(),
        vec![(":method", "CONNECT"), (":authority", "a.com:80")],
        get(&[])[..3].to_vec(),
    ];
    for case in cases {
        let (outcome, captured) = ask(&names, &head(1, END_STREAM, &case)).await;
        assert!(outcome.is_some(), "{case:?}: the connection ended without a word");
        assert_eq!(stub.seen(), Vec::<String>::new(), "{case:?}");
        if outcome == Some(HEADERS) {
            let records = super::http2::ended(&captured, 1).await;
            assert!((400..=502).contains(&records[0].response_code), "{case:?}: {records:?}");
        }
    }
    // The control.
    let (outcome, _) = ask(&names, &head(1, END_STREAM, &get(&[("content-length", "0")]))).await;
    assert_eq!((outcome, stub.seen().len()), (Some(HEADERS), 1));
}

/// T-37: as for HTTP/1.1.
#[tokio::test]
async fn head_limits() {
    let (stub, names) = translating().await;
    let (path, filler) = (format!("/{}", "a".repeat(33_000)), "b".repeat(6_000));
    let mut long_target = get(&[]);
    long_target[2].1 = &path;
    let cases = [
        (get(&vec![("x", "y"); 190]), 200),
        (get(&vec![("x", filler.as_str()); 10]), 200),
        (get(&vec![("x", "y"); 201]), 431),
        (get(&vec![("x", filler.as_str()); 11]), 431),
        (long_target, 431),
    ];
    for (fields, status) in cases {
        stub.seen.lock().expect("no panic").clear();
        let (outcome, captured) = ask(&names, &head(1, END_STREAM, &fields)).await;
        assert_eq!(outcome, Some(HEADERS), "{status}");
        assert_eq!(stub.seen().len(), usize::from(status == 200));
        // What the library refuses never became a request.
        if let Some(record) = captured.records().first() {
            assert_eq!(record.response_code, status);
        }
    }
}

/// T-36, T-50: what makes work and asks for nothing ends the connection within a bound, though the
/// client reads all that it is told.
#[tokio::test]
async fn floods() {
    let (stub, names) = translating().await;
    let ping = frame(PING, 0, 0, &[0; 8]);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
    let window = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    let priority = frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]);
    let unknown = frame(0x42, 0, 0, &[]);
    let open = head(1, 0, &get(&[]));
    let empty = frame(DATA, 0, 1, &[]);
    let endless = frame(HEADERS, END_STREAM, 1, &block(&get(&[])));
    let continuation = frame(CONTINUATION, 0, 1, &block(&[("x", "y")]));
    let cases: [(&str, &[u8], &[u8]); 7] = [
        ("PING", &[], &ping),
        ("SETTINGS", &[], &settings),
        ("WINDOW_UPDATE", &[], &window),
        ("PRIORITY", &[], &priority),
        ("unknown", &[], &unknown),
        ("empty DATA", &open, &empty),
        ("CONTINUATION", &endless, &continuation),
    ];
    for (what, first, again) in cases {
        let (stream, _captured, serving) = connect(&names).await;
        let sent = flood(stream, [HELLO, first].concat(), |_| again.to_vec()).await;
        assert!(sent < FLOOD, "{what}: {sent} frames and no end");
        timeout(PATIENCE, serving).await.expect("ends").expect("no panic");
    }
    // Rapid reset (CVE-2023-44487).
    {
        let (stream, _captured, serving) = connect(&names).await;
        let reset = |number: u32| {
            let stream = 2 * number + 1;
            let request = head(stream, END_STREAM, &get(&[]));
            [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        let sent = flood(stream, HELLO.to_vec(), reset).await;
        assert!(sent < FLOOD, "rapid reset: {sent} and no end");
        timeout(PATIENCE, serving).await.expect("ends").expect("no panic");
    }
    // Others do not feel it.
    let (outcome, _) = ask(&names, &head(1, END_STREAM, &get(&[]))).await;
    assert_eq!(outcome, Some(HEADERS));
    assert!(stub.connections() > 0);
}

/// T-36: a few bytes that stand for many (one large field in HPACK's table, named again and again)
/// are a head like any other: too large, and nothing of it reaches an upstream.
#[tokio::test]
async fn t36_an_hpack_bomb_is_too_large_a_head() {
    let (stub, names) = translating().await;
    // Literal with incremental indexing (RFC 7541 6.2.1): the table's first free entry is 62.
    let large = "b".repeat(4_000);
    let mut bomb = block(&get(&[]));
    let literal = block(&[("x", large.as_str())]);
    bomb.push(0x40);
    bomb.extend_from_slice(&literal[1..]);
    bomb.extend(std::iter::repeat_n(0x80 | 62, 8_000));
    let (mut stream, _captured, _serving) = connect(&names).await;
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb);
    stream.write_all(&[HELLO, &whole].concat()).await.expect("writes");
    assert!(outcome(&mut stream).await.is_some(), "refused in HTTP/2's own words");
    assert_eq!(stub.seen(), Vec::<String>::new());
    // The control: once or twice is no bomb.
    let twice = &bomb[..bomb.len() - 7_999];
    let (mut stream, _captured, _serving) = connect(&names).await;
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, twice);
    stream.write_all(&[HELLO, &whole].concat()).await.expect("writes");
    assert_eq!((outcome(&mut stream).await, stub.seen().len()), (Some(HEADERS), 1));
}

/// Frames after which a flood has no bound.
const FLOOD: u32 = 50_000;

/// Sends `hello` and then what `again` makes until the connection ends; how many went out.
async fn flood(stream: TcpStream, hello: Vec<u8>, again: impl Fn(u32) -> Vec<u8>) -> u32 {
    let (mut reading, mut writing) = stream.into_split();
    let drain =
        tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    writing.write_all(&hello).await.expect("writes");
    let mut sent = 0;
    while sent < FLOOD && !drain.is_finished() && writing.write_all(&again(sent)).await.is_ok() {
        sent += 1;
    }
    drain.abort();
    sent
}
