//! What must hold of any bytes that begin a connection, as far as TLS is concerned.

use interceptor_ebpf::hello::Reading;
use interceptor_ebpf::hello::host::read_payload;

use super::second::{self, Answer};
use super::{MAX_BYTES, Reader};
use crate::decide::host::HostName;
use crate::fuzzing::{pieces, split};
use crate::sniff::{ClientHello, Scan};

/// ClientHellos: the same answer whatever the pieces (T-17), never undecided above the bound (T-18),
/// the answer of a second reader, and no other name in the kernel (T-19, T-23).
pub(crate) fn client_hello(input: &[u8]) {
    let (bytes, sizes) = split(input);
    check(bytes, sizes);
    // The same bytes as a message in honest records, so that most inputs get past the record layer.
    check(&records(bytes, sizes), sizes);
}

fn check(bytes: &[u8], sizes: &[u8]) {
    let whole = Reader::default().push(bytes);
    assert_eq!(Answer::from(whole.clone()), second::scan(bytes), "two readers");
    let kernel = read_payload(bytes);
    assert!(agrees(&kernel, &whole), "{kernel:?} in the kernel, {whole:?} here");

    let (mut reader, mut taken, mut by_pieces) = (Reader::default(), 0, Scan::NeedMore);
    for piece in pieces(bytes, sizes) {
        by_pieces = reader.push(piece);
        taken += piece.len();
        if by_pieces != Scan::NeedMore {
            break;
        }
    }
    match &by_pieces {
        // Bytes behind a hello are judged with the piece that completes it only, so the whole may
        // be refused for them; the bytes that were taken may not.
        Scan::Found(_) => {
            let there = Reader::default().push(&bytes[..taken]);
            assert_eq!(there, by_pieces);
            let kernel = read_payload(&bytes[..taken]);
            assert!(agrees(&kernel, &there), "{kernel:?} in the kernel, {there:?} here");
            assert!(whole == by_pieces || matches!(whole, Scan::Malformed(_)), "{whole:?}");
        }
        _ => assert_eq!(whole, by_pieces, "whatever the pieces"),
    }
    assert!(by_pieces != Scan::NeedMore || bytes.len() < MAX_BYTES, "undecided above the bound");
}

/// `body` as a ClientHello message in records whose sizes come from `sizes`.
fn records(body: &[u8], sizes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut rest = &[&[1], &len[1..], body].concat()[..];
    let mut sizes = sizes.iter().chain(&[255]).cycle();
    let mut out = Vec::new();
    while let Some(size) = sizes.next().filter(|_| !rest.is_empty()) {
        let (fragment, after) = rest.split_at(rest.len().min((usize::from(*size) + 1) * 64));
        out.extend([22, 3, 1]);
        out.extend((fragment.len() as u16).to_be_bytes());
        out.extend_from_slice(fragment);
        rest = after;
    }
    out
}

/// What the kernel may say where the proxy's reader says this of the same bytes.
pub(super) fn agrees(kernel: &(Reading, Option<Vec<u8>>), proxy: &Scan<ClientHello>) -> bool {
    let (reading, name) = kernel;
    match reading {
        Reading::Named(_) => {
            let name = name.as_deref().and_then(|name| str::from_utf8(name).ok());
            let name = name.and_then(|name| HostName::parse(name).ok());
            matches!(proxy, Scan::Found(hello) if name.is_some() && hello.sni == name)
                // Addresses are told from names by the proxy; no table of names has one.
                || (name.is_none() && matches!(proxy, Scan::Malformed(_)))
        }
        Reading::NoName => matches!(proxy, Scan::Found(hello) if hello.sni.is_none()),
        Reading::NotTls => *proxy == Scan::NotMine,
        // Held until the deadline: nothing leaves.
        Reading::NeedMore => !matches!(proxy, Scan::Found(_)),
        // Refused, and the proxy's next time.
        Reading::Unclear => true,
    }
}
