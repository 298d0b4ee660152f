//! Readers of what others wrote, each with what must hold of it whatever the bytes are. The fuzz
//! targets in `tests/fuzz` run these functions, and so does the test that plays kept inputs again.

mod admin;
mod dns;
mod log;
mod policy;
#[cfg(test)]
mod replay;
mod start;

use crate::{act::http::fuzzed as http, sniff::tls::fuzzed as tls};

/// Holds for the bytes, or panics.
pub type Target = fn(&[u8]);

/// The targets by name; each is a program in `tests/fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 11] = [
    ("tls_client_hello", tls::client_hello),
    ("http_start", start::http_start),
    ("http1_framing", http::framing),
    ("http1_requests", http::requests),
    ("http1_answers", http::answers),
    ("http2_requests", http::http2_requests),
    ("policy", policy::load),
    ("dns", dns::answers),
    ("admin", admin::request),
    ("log_format", log::format),
    ("log_filter", log::filter),
];

/// Runs one target.
///
/// # Panics
/// What must hold does not; or there is no target of this name.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a name of TARGETS").1(input);
}

/// An input's bytes, and sizes of pieces to cut them into. The last byte says how many of those
/// before it are sizes (up to seven), so that a plain file with a 0 behind it is an input too.
pub(crate) fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((count, rest)) = input.split_last() else { return (&[], &[]) };
    rest.split_at(rest.len() - usize::from(count % 8).min(rest.len()))
}

/// `bytes` in pieces of these sizes (each plus one) and of one byte, over and over.
pub(crate) fn pieces<'a>(bytes: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().chain(&[0]).cycle();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = usize::from(*sizes.next()?) + 1;
        let (piece, after) = rest.split_at(rest.len().min(size));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
