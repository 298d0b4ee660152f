//! A workspace over plain memory: for tests, and to compare with other readers. It panics where the
//! kernel's would read what was never written.

use std::vec::Vec;

use super::{
    BLURRED, KEY_NAME, MARKS, MAX_MESSAGE, PIECE, RECORD_HEADER, Reading, Workspace, read,
};

struct Memory<'a> {
    payload: &'a [u8],
    message: Vec<u8>,
    marks: Vec<bool>,
    key: [u8; 256],
}

impl Workspace for Memory<'_> {
    fn record_header(&mut self, at: usize) -> [u8; RECORD_HEADER] {
        let header = self.payload.get(at..).and_then(<[u8]>::first_chunk);
        header.copied().unwrap_or_default()
    }

    fn first_byte(&mut self) -> u8 {
        self.payload[0]
    }

    fn gather(&mut self, from: usize, to: usize, len: usize) -> u64 {
        assert!((1..=PIECE).contains(&len) && to + len <= MAX_MESSAGE, "{to} {len}");
        assert_eq!(to, self.message.len(), "each byte is written once");
        self.message.extend_from_slice(&self.payload[from..from + len]);
        0
    }

    fn byte(&self, at: usize) -> u8 {
        self.message[at]
    }

    fn clear_marks(&mut self) {
        self.marks = vec![false; MARKS];
    }

    fn mark(&mut self, slot: usize) -> bool {
        !std::mem::replace(&mut self.marks[slot], true)
    }

    fn set_key(&mut self, at: usize, byte: u8) {
        self.key[at] = byte;
    }

    fn blur(&mut self, slot: usize, value: usize) -> usize {
        assert!(slot < BLURRED);
        value
    }

    fn opaque(&self, value: usize) -> usize {
        value
    }
}

/// Reads one packet's payload; the name, in lower case, where it is [`Reading::Named`].
pub fn read_payload(payload: &[u8]) -> (Reading, Option<Vec<u8>>) {
    let mut memory = Memory { payload, message: Vec::new(), marks: Vec::new(), key: [0xff; 256] };
    let reading =
        if payload.is_empty() { Reading::NeedMore } else { read(&mut memory, payload.len()) };
    let name = match reading {
        Reading::Named(len) => {
            let (name, rest) = memory.key[KEY_NAME..].split_at(len);
            assert_eq!(rest[0], 0, "a name ends with 0");
            Some(name.iter().rev().copied().collect())
        }
        _ => None,
    };
    (reading, name)
}
