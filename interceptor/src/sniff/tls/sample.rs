//! ClientHellos for tests: hand-built ones that can be wrong in every way, and rustls' own.

use std::sync::Arc;

/// A ClientHello in parts. The default is the smallest honest one.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) version: [u8; 2],
    pub(crate) session: Vec<u8>,
    pub(crate) ciphers: Vec<u8>,
    pub(crate) compression: Vec<u8>,
    pub(crate) extensions: Option<Vec<u8>>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            version: [3, 3],
            session: vec![7; 32],
            ciphers: vec![0x13, 0x01, 0xc0, 0x2f],
            compression: vec![0],
            extensions: None,
        }
    }
}

impl Sample {
    /// A hello that names `name`.
    pub(crate) fn named(name: impl AsRef<[u8]>) -> Self {
        Self::default().ext(0, server_names(&[(0, name.as_ref())]))
    }

    /// Adds an extension.
    pub(crate) fn ext(mut self, kind: u16, data: impl AsRef<[u8]>) -> Self {
        let extensions = self.extensions.get_or_insert_default();
        extensions.extend(kind.to_be_bytes());
        extensions.extend(vec16(data));
        self
    }

    /// The body, without the handshake header.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = [&self.version[..], &[9; 32]].concat();
        body.extend(vec8(&self.session));
        body.extend(vec16(&self.ciphers));
        body.extend(vec8(&self.compression));
        body.extend(self.extensions.iter().flat_map(vec16));
        body
    }

    /// The handshake message.
    pub(crate) fn message(&self) -> Vec<u8> {
        message(1, &self.body())
    }

    /// The message in records of at most 16 KiB.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        records(&self.message(), 1 << 14)
    }

    /// The same hello with a padding extension that makes its message `len` bytes long.
    pub(crate) fn padded_to(self, len: usize) -> Self {
        let padding = len - self.clone().ext(21, []).message().len();
        self.ext(21, vec![0; padding])
    }
}

/// A handshake message of any type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &len[1..], body].concat()
}

/// One record.
pub(crate) fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    [vec![kind, 3, 1], vec16(fragment)].concat()
}

/// `message` in handshake records of `size` bytes each.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|fragment| record(22, fragment)).collect()
}

/// The data of a `server_name` extension.
pub(crate) fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    vec16(
        names
            .iter()
            .flat_map(|(kind, name)| [vec![*kind], vec16(name)].concat())
            .collect::<Vec<_>>(),
    )
}

pub(crate) fn vec8(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    [&[u8::try_from(data.len()).unwrap()], data].concat()
}

pub(crate) fn vec16(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

/// The first flight of a rustls client that dials `name` and offers `alpn`.
pub(crate) fn rustls(name: &str, alpn: &[&str], tls12_only: bool) -> Vec<u8> {
    let versions: &[_] = if tls12_only { &[&rustls::version::TLS12] } else { rustls::ALL_VERSIONS };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_string().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}
