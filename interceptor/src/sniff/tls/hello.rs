//! The body of a complete ClientHello. tls-parser splits it into fields; being lenient (it leaves
//! what it cannot read), everything it leaves over is refused here.

use std::collections::HashSet;

use tls_parser::{SNIType, TlsExtension, parse_tls_extension_sni_hostname};
use tls_parser::{parse_tls_extension_unknown, parse_tls_handshake_client_hello};

use super::malformed;
use crate::decide::host::HostName;
use crate::sniff::{ClientHello, Malformed};

const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;
const EXT_EARLY_DATA: u16 = 42;
const EXT_ECH: u16 = 0xfe0d;

/// A hello, and what only the judgement of its flight needs.
#[derive(Default)]
pub(super) struct Read {
    hello: ClientHello,
    /// The client offers 0-RTT data, so records may follow at once.
    pub(super) early_data: bool,
}

impl From<Read> for ClientHello {
    fn from(read: Read) -> Self {
        read.hello
    }
}

/// Reads `body`, a ClientHello without its handshake header. Every byte must have its place (T-23).
pub(super) fn read(body: &[u8]) -> Result<Read, Malformed> {
    let Ok(([], hello)) = parse_tls_handshake_client_hello(body) else {
        return malformed("ClientHello has a wrong length inside");
    };
    // SSL 3.0 must be refused (RFC 8446 appendix D.5); 1.3 and later say 1.2 here (section 4.1.2).
    if !(0x0301..=0x0303).contains(&hello.version.0) {
        return malformed("impossible ClientHello version");
    }
    if hello.ciphers.is_empty() {
        return malformed("ClientHello has no cipher suite");
    }
    if !hello.comp.iter().any(|method| method.0 == 0) {
        return malformed("ClientHello lacks the null compression method");
    }
    extensions(hello.ext.unwrap_or_default())
}

fn extensions(mut rest: &[u8]) -> Result<Read, Malformed> {
    let mut read = Read::default();
    let mut seen = HashSet::new();
    while !rest.is_empty() {
        let Ok((after, TlsExtension::Unknown(kind, data))) = parse_tls_extension_unknown(rest)
        else {
            return malformed("extension has a wrong length");
        };
        rest = after;
        // RFC 8446 section 4.2; two names in two extensions among them (T-19).
        if !seen.insert(kind.0) {
            return malformed("the same extension twice");
        }
        match kind.0 {
            EXT_SERVER_NAME => {
                // The name is the last thing in the extension.
                read.hello.dotted = data.last() == Some(&b'.');
                read.hello.sni = server_name(data)?;
            }
            EXT_ALPN => read.hello.alpn = alpn(data)?,
            EXT_EARLY_DATA => read.early_data = true,
            EXT_ECH => read.hello.ech = true,
            _ => {}
        }
    }
    Ok(read)
}

/// The one host name of `server_name` (RFC 6066 section 3). Nothing in it, in its list or in its
/// name is no name (T-21).
fn server_name(data: &[u8]) -> Result<Option<HostName>, Malformed> {
    if data.is_empty() {
        return Ok(None);
    }
    let list = vector16(data).ok_or(Malformed("server_name has a wrong length"))?;
    if list.is_empty() {
        return Ok(None);
    }
    let name = match parse_tls_extension_sni_hostname(list) {
        Ok(([], (SNIType::HostName, name))) => name,
        Ok((_, (SNIType::HostName, _))) => return malformed("more than one server name"),
        Ok(_) => return malformed("server name of an unknown type"),
        Err(_) => return malformed("server_name has a wrong length"),
    };
    if name.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(name).map_err(|_| Malformed("server name is not text"))?;
    HostName::parse(text).map(Some).map_err(|bad| Malformed(bad.0))
}

/// The protocols of `application_layer_protocol_negotiation` (RFC 7301 section 3.1).
fn alpn(data: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    const WRONG: Malformed = Malformed("ALPN has a wrong length");
    let mut rest = vector16(data).filter(|list| !list.is_empty()).ok_or(WRONG)?;
    let mut protocols = Vec::new();
    while let [len, after @ ..] = rest {
        let (protocol, after) = after.split_at_checked(usize::from(*len)).ok_or(WRONG)?;
        if protocol.is_empty() {
            return Err(WRONG);
        }
        protocols.push(protocol.to_vec());
        rest = after;
    }
    Ok(protocols)
}

/// What a vector with a 16-bit length holds, if it fills `data` exactly.
fn vector16(data: &[u8]) -> Option<&[u8]> {
    let (len, list) = data.split_first_chunk()?;
    (list.len() == usize::from(u16::from_be_bytes(*len))).then_some(list)
}
