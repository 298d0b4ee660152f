//! ClientHellos made to order (RFC 8446, 4.1.2; RFC 6066, 3), honest and otherwise.

/// The extension with names.
pub(super) const SERVER_NAME: u16 = 0;
const PADDING: u16 = 21;
const HANDSHAKE: u8 = 22;

/// A ClientHello by its extensions.
#[derive(Debug)]
pub(super) struct Hello {
    extensions: Vec<Vec<u8>>,
    /// Bytes of the message behind the extensions.
    pub(super) trailing: Vec<u8>,
}

impl Hello {
    /// With these extensions.
    pub(super) fn of(extensions: Vec<Vec<u8>>) -> Self {
        Self { extensions, trailing: Vec::new() }
    }

    /// With one name.
    pub(super) fn named(name: &str) -> Self {
        Self::of(vec![names(&[(0, name)])])
    }

    /// The handshake message.
    pub(super) fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[0x5a; 32]);
        // No session; two cipher suites; no compression.
        body.extend_from_slice(&[0, 0, 4, 0x13, 0x01, 0xc0, 0x2f, 1, 0]);
        body.extend(vector(&self.extensions.concat()));
        body.extend_from_slice(&self.trailing);
        let length = (body.len() as u32).to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    /// The message in one record.
    pub(super) fn record(&self) -> Vec<u8> {
        self.records(usize::MAX)
    }

    /// The message in records of at most `size` bytes.
    pub(super) fn records(&self, size: usize) -> Vec<u8> {
        self.records_between(size, &[])
    }

    /// The same, with `filler` before each record but the first.
    pub(super) fn records_between(&self, size: usize, filler: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, part) in self.message().chunks(size).enumerate() {
            if number > 0 {
                bytes.extend_from_slice(filler);
            }
            bytes.extend_from_slice(&[HANDSHAKE, 3, 1]);
            bytes.extend(vector(part));
        }
        bytes
    }
}

/// A server_name extension: types and names.
pub(super) fn names(names: &[(u8, &str)]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| [vec![*kind], vector(name.as_bytes())].concat())
        .collect();
    extension(SERVER_NAME, &vector(&list))
}

/// An extension that says nothing.
pub(super) fn padding(length: usize) -> Vec<u8> {
    extension(PADDING, &vec![0; length])
}

/// One extension.
pub(super) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(body)].concat()
}

/// Bytes behind their length in two bytes.
fn vector(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sniff::Scan;
    use crate::sniff::tls::Reader;

    #[test]
    fn honest_hellos_are_read_by_the_sniffer() {
        for bytes in
            [Hello::named("allowed.test").record(), Hello::named("allowed.test").records(1)]
        {
            let Scan::Found(hello) = Reader::default().push(&bytes) else { panic!("{bytes:?}") };
            assert_eq!(hello.sni.unwrap().to_string(), "allowed.test");
        }
    }
}
