//! The ClientHello reader: no panic on any bytes, and the same answer whatever the pieces (T-17).
#![no_main]

use interceptor::sniff::tls::{MAX_BYTES, Reader};
use interceptor::sniff::{ClientHello, Scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, pieces) = input;
    check(&bytes, &pieces);
    // The same bytes as a message in honest records, so that most inputs get past the record layer.
    check(&records(&bytes, &pieces), &pieces);
});

fn check(bytes: &[u8], pieces: &[u8]) {
    let whole = Reader::default().push(bytes);
    let (by_pieces, taken) = feed(bytes, pieces);
    match &by_pieces {
        // Bytes behind a hello are judged with the piece that completes it only, so the whole may
        // be refused for them; the bytes that were taken may not.
        Scan::Found(_) => {
            assert_eq!(Reader::default().push(&bytes[..taken]), by_pieces);
            assert!(
                whole == by_pieces || matches!(whole, Scan::Malformed(_)),
                "{whole:?} {by_pieces:?}"
            );
        }
        _ => assert_eq!(whole, by_pieces),
    }
    if by_pieces == Scan::NeedMore {
        assert!(bytes.len() < MAX_BYTES, "undecided above the bound");
    }
}

/// Pushes pieces whose sizes come from `pieces`, over and over, until the answer is final. Returns it
/// and how many bytes were pushed.
fn feed(bytes: &[u8], pieces: &[u8]) -> (Scan<ClientHello>, usize) {
    let mut reader = Reader::default();
    let mut taken = 0;
    let mut sizes = pieces.iter().chain(&[0]).cycle().map(|size| usize::from(*size) + 1);
    while taken < bytes.len() {
        let end = bytes.len().min(taken + sizes.next().unwrap_or(1));
        let answer = reader.push(&bytes[taken..end]);
        taken = end;
        if answer != Scan::NeedMore {
            return (answer, taken);
        }
    }
    (Scan::NeedMore, taken)
}

/// `body` as a ClientHello message in records whose sizes come from `sizes`.
fn records(body: &[u8], sizes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let message = [&[1], &len[1..], body].concat();
    let mut rest = &message[..];
    let mut out = Vec::new();
    let mut sizes = sizes.iter().chain(&[255]).cycle().map(|size| (usize::from(*size) + 1) * 64);
    while !rest.is_empty() {
        let (fragment, after) = rest.split_at(rest.len().min(sizes.next().unwrap_or(1)));
        out.extend([22, 3, 1]);
        out.extend((fragment.len() as u16).to_be_bytes());
        out.extend_from_slice(fragment);
        rest = after;
    }
    out
}
