//! The detection of HTTP and the sniffer around it: no panic on any bytes, the same answer whatever
//! the pieces, and every byte kept for the replay.
#![no_main]

use interceptor::sniff::{Hello, Scan, Sniffer, http};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, pieces) = input;

    // Once certain, an answer holds for every longer prefix.
    let whole = http::scan(&bytes);
    let first =
        (0..bytes.len()).map(|cut| http::scan(&bytes[..cut])).find(|scan| *scan != Scan::NeedMore);
    assert_eq!(first.unwrap_or(whole.clone()), whole);
    assert!(bytes.len() < 24 || whole != Scan::NeedMore, "undecided after a whole preface");

    let mut sniffer = Sniffer::default();
    let mut rest = &bytes[..];
    let mut by_pieces = None;
    let mut sizes = pieces.iter().chain(&[0]).cycle().map(|size| usize::from(*size) + 1);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(sizes.next().unwrap_or(1)));
        by_pieces = sniffer.push(piece);
        rest = after;
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
    assert_eq!(Sniffer::default().push(&bytes).is_some(), by_pieces.is_some());
    assert_eq!(sniffer.into_bytes(), bytes);
});
