//! A stream whose every byte is known from its offset, to see that a transfer changed nothing.
//!
//! The period is prime, so a lost, doubled or swapped block of any round size is a difference.

use std::sync::LazyLock;

/// Bytes after which the pattern repeats; prime.
const PERIOD: usize = 65_521;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x2545_f491_u32;
    (0..PERIOD)
        .map(|_| {
            // xorshift32: no two stretches of the period look alike.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
});

/// The longest stretch of the pattern that starts at `offset` and has at most `limit` bytes.
///
/// # Panics
/// Never: the period fits a `usize`.
#[must_use]
pub fn stretch(offset: u64, limit: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).expect("smaller than the period");
    &BLOCK[start..(start + limit).min(PERIOD)]
}

/// Fills `buffer` with the bytes of the pattern from `offset` on.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut done = 0;
    while done < buffer.len() {
        let part = stretch(offset + done as u64, buffer.len() - done);
        buffer[done..done + part.len()].copy_from_slice(part);
        done += part.len();
    }
}

/// Whether `bytes` are those of the pattern from `offset` on.
#[must_use]
pub fn matches(offset: u64, bytes: &[u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        let part = stretch(offset + done as u64, bytes.len() - done);
        if bytes[done..done + part.len()] != *part {
            return false;
        }
        done += part.len();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_buffer_matches_at_its_offset_only() {
        let mut buffer = vec![0; 200_000];
        fill(12_345, &mut buffer);
        assert!(matches(12_345, &buffer));
        assert!(matches(12_345 + 70_000, &buffer[70_000..]));
        assert!(!matches(12_346, &buffer));
        buffer[150_000] ^= 1;
        assert!(!matches(12_345, &buffer));
    }
}
