//! A second reader of ClientHellos, to compare with: slow, without state, sharing no code with the
//! first. It reads the whole prefix byte by byte, anew each time.

use crate::decide::host::HostName;
use crate::sniff::{ClientHello, Scan};

/// [`Scan`] without reasons.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Found(ClientHello),
    NeedMore,
    NotMine,
    Malformed,
}

impl From<Scan<ClientHello>> for Answer {
    fn from(scan: Scan<ClientHello>) -> Self {
        match scan {
            Scan::Found(hello) => Self::Found(hello),
            Scan::NeedMore => Self::NeedMore,
            Scan::NotMine => Self::NotMine,
            Scan::Malformed(_) => Self::Malformed,
        }
    }
}

pub(super) fn scan(bytes: &[u8]) -> Answer {
    let limit = 65536;
    let mut message = Vec::new();
    let mut record = 0;
    loop {
        let at = |i: usize| bytes[..bytes.len().min(limit)].get(record + i).copied();
        let wrong = if record == 0 { Answer::NotMine } else { Answer::Malformed };
        for (i, ok) in [(0, 22..=22), (1, 3..=3), (2, 0..=4)] {
            match at(i) {
                Some(byte) if ok.contains(&byte) => {}
                Some(_) if i == 2 => return Answer::Malformed,
                Some(_) => return wrong,
                None => return short(bytes, limit),
            }
        }
        let (Some(high), Some(low)) = (at(3), at(4)) else { return short(bytes, limit) };
        let len = high as usize * 256 + low as usize;
        if len == 0 || len > 16384 {
            return Answer::Malformed;
        }
        for i in 0..len {
            let Some(byte) = at(5 + i) else { return short(bytes, limit) };
            message.push(byte);
            if message[0] != 1 {
                return Answer::Malformed;
            }
            if message.len() < 4 {
                continue;
            }
            let want =
                4 + (message[1] as usize * 65536 + message[2] as usize * 256 + message[3] as usize);
            if want + 5 > limit || (message.len() == want && i + 1 < len) {
                return Answer::Malformed;
            }
            if message.len() == want {
                return match body(&message[4..]) {
                    Some((hello, early)) if flight(&bytes[record + 5 + len..], early) => {
                        Answer::Found(hello)
                    }
                    _ => Answer::Malformed,
                };
            }
        }
        record += 5 + len;
    }
}

fn short(bytes: &[u8], limit: usize) -> Answer {
    if bytes.len() >= limit { Answer::Malformed } else { Answer::NeedMore }
}

/// Takes a vector whose length has `width` bytes off `rest`.
fn vector<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let len = take(rest, width)?.iter().fold(0, |len, byte| len * 256 + *byte as usize);
    take(rest, len)
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let taken = rest.get(..n)?;
    *rest = &rest[n..];
    Some(taken)
}

fn body(mut rest: &[u8]) -> Option<(ClientHello, bool)> {
    let rest = &mut rest;
    let version = take(rest, 2)?;
    take(rest, 32)?;
    let session = vector(rest, 1)?;
    let ciphers = vector(rest, 2)?;
    let compression = vector(rest, 1)?;
    let mut list = if rest.is_empty() { &[][..] } else { vector(rest, 2)? };
    let honest = version[0] == 3
        && [1, 2, 3].contains(&version[1])
        && session.len() <= 32
        && !ciphers.is_empty()
        && ciphers.len() % 2 == 0
        && compression.contains(&0)
        && rest.is_empty();
    if !honest {
        return None;
    }
    let mut hello = ClientHello::default();
    let mut kinds = Vec::new();
    while !list.is_empty() {
        let kind = take(&mut list, 2)?;
        let mut data = vector(&mut list, 2)?;
        if kinds.contains(&kind) {
            return None;
        }
        kinds.push(kind);
        if kind == [0, 0] && !data.is_empty() {
            let mut names = vector(&mut data, 2)?;
            if !names.is_empty() {
                let host_name = take(&mut names, 1)? == [0];
                let name = vector(&mut names, 2)?;
                if !host_name || !names.is_empty() {
                    return None;
                }
                if !name.is_empty() {
                    hello.dotted = name.ends_with(b".");
                    hello.sni = Some(HostName::parse(std::str::from_utf8(name).ok()?).ok()?);
                }
            }
            if !data.is_empty() {
                return None;
            }
        } else if kind == [0, 16] {
            let mut protocols = vector(&mut data, 2)?;
            if protocols.is_empty() || !data.is_empty() {
                return None;
            }
            while !protocols.is_empty() {
                let protocol = vector(&mut protocols, 1)?.to_vec();
                if protocol.is_empty() {
                    return None;
                }
                hello.alpn.push(protocol);
            }
        }
    }
    hello.ech = kinds.contains(&&[0xfe, 0x0d][..]);
    Some((hello, kinds.contains(&&[0, 42][..])))
}

fn flight(rest: &[u8], early: bool) -> bool {
    if rest.is_empty() {
        return true;
    }
    let most = match rest[0] {
        21 => 16384,
        20 if early => 16384,
        23 if early => 16384 + 256,
        _ => return false,
    };
    if rest.len() > 1 && rest[1] != 3 {
        return false;
    }
    if rest.len() < 5 {
        return true;
    }
    let len = rest[3] as usize * 256 + rest[4] as usize;
    len > 0 && len <= most && (rest.len() < 5 + len || flight(&rest[5 + len..], early))
}
