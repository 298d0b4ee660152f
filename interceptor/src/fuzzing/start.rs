//! What a connection starts with.

use super::{pieces, split};
use crate::sniff::{Hello, Scan, Sniffer, http};

/// The detection of HTTP and the sniffer around it: an answer once certain stays, whatever the
/// pieces, and every byte is kept for the replay.
pub(super) fn http_start(input: &[u8]) {
    let (bytes, sizes) = split(input);

    // Once certain, an answer holds for every longer prefix.
    let whole = http::scan(bytes);
    let first =
        (0..bytes.len()).map(|cut| http::scan(&bytes[..cut])).find(|scan| *scan != Scan::NeedMore);
    assert_eq!(first.unwrap_or(whole.clone()), whole);
    assert!(bytes.len() < 24 || whole != Scan::NeedMore, "undecided after a whole preface");

    let mut sniffer = Sniffer::default();
    let mut by_pieces = None;
    for piece in pieces(bytes, sizes) {
        by_pieces = sniffer.push(piece);
    }
    match (&by_pieces, &whole) {
        (Some(Hello::Http1), Scan::Found(http::Start::Http1)) => {}
        (Some(Hello::Http2), Scan::Found(http::Start::Http2)) => {}
        (Some(Hello::Malformed(sniffed)), Scan::Malformed(scanned)) => assert_eq!(sniffed, scanned),
        // TLS begins with a byte that no HTTP begins with.
        (Some(Hello::Tls(_) | Hello::Malformed(_) | Hello::Opaque) | None, Scan::NotMine) => {}
        (None, Scan::NeedMore) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(Sniffer::default().push(bytes).is_some(), by_pieces.is_some());
    assert_eq!(sniffer.into_bytes(), bytes);
}
