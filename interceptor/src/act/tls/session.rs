//! What a TLS session says of itself to the log, in the words of OpenSSL, which people know.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, ProtocolVersion, SupportedCipherSuite};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::X509Name;

use crate::account::TlsFields;

/// What a handshake agreed on. Kept as it came: reading certificates is for who asks.
#[derive(Debug, Clone)]
pub struct TlsSession {
    version: Option<ProtocolVersion>,
    suite: Option<SupportedCipherSuite>,
    server: Option<CertificateDer<'static>>,
}

impl TlsSession {
    /// Of a connection whose handshake is done.
    pub(in crate::act) fn of(connection: &ClientConnection) -> Self {
        let server = connection.peer_certificates().and_then(|chain| chain.first());
        Self {
            version: connection.protocol_version(),
            suite: connection.negotiated_cipher_suite(),
            server: server.map(|certificate| certificate.clone().into_owned()),
        }
    }

    /// For the log.
    pub fn fields(&self) -> TlsFields {
        let mut fields = TlsFields {
            version: self.version.map(|version| format!("{version:?}").replace('_', ".")),
            cipher: self.suite.map(|suite| openssl_name(&format!("{:?}", suite.suite()))),
            ..TlsFields::default()
        };
        let parsed = self.server.as_deref().map(x509_parser::parse_x509_certificate);
        if let Some(Ok((_, server))) = parsed {
            fields.peer_subject = distinguished_name(server.subject());
            fields.peer_issuer = distinguished_name(server.issuer());
            fields.peer_dns_san = names(&server, |name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            });
            fields.peer_uri_san = names(&server, |name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            });
            fields.peer_ip_san = names(&server, |name| match name {
                GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
                _ => None,
            });
        }
        fields
    }
}

/// `TLS13_AES_256_GCM_SHA384` is `TLS_AES_256_GCM_SHA384` there, and
/// `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` is `ECDHE-RSA-AES128-GCM-SHA256`.
fn openssl_name(suite: &str) -> String {
    if let Some(rest) = suite.strip_prefix("TLS13_") {
        return format!("TLS_{rest}");
    }
    let name = suite.strip_prefix("TLS_").unwrap_or(suite);
    let name = name.replace("_WITH_", "_").replace("AES_", "AES");
    name.replace("POLY1305_SHA256", "POLY1305").replace('_', "-")
}

/// RFC 2253: the most specific part first, what would end a part escaped. `None` for the empty name.
fn distinguished_name(name: &X509Name<'_>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in name.iter_rdn() {
        let attributes: Vec<_> = part
            .iter()
            .map(|attribute| {
                let kind = attribute.attr_type();
                let kind = oid2abbrev(kind, oid_registry())
                    .map_or_else(|_| kind.to_id_string(), str::to_owned);
                let value = attribute.as_str().map_or_else(
                    |_| String::from_utf8_lossy(attribute.as_slice()).into_owned(),
                    str::to_owned,
                );
                format!("{kind}={}", escaped(&value))
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    (!parts.is_empty()).then(|| parts.join(","))
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.char_indices() {
        let edge = (at == 0 && (c == '#' || c == ' ')) || (c == ' ' && at + 1 == value.len());
        if edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The alternative names of one kind, joined.
fn names(
    certificate: &X509Certificate<'_>,
    pick: impl Fn(&GeneralName<'_>) -> Option<String>,
) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let picked: Vec<_> = names.value.general_names.iter().filter_map(pick).collect();
    (!picked.is_empty()).then(|| picked.join(","))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_their_openssl_names() {
        for (suite, name) in [
            ("TLS13_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
            ("TLS13_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
            ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
            ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
        ] {
            assert_eq!(openssl_name(suite), name);
        }
    }

    /// A server chooses its names: no part of one passes for another part.
    #[test]
    fn parts_of_names_stay_apart() {
        let mut params = rcgen::CertificateParams::new(vec!["a.com".into()]).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in [
            (rcgen::DnType::CountryName, "NL"),
            (rcgen::DnType::OrganizationName, "x, CN=forged"),
            (rcgen::DnType::CommonName, "a.com"),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let server = Some(certificate.der().clone());
        let fields = TlsSession { version: None, suite: None, server }.fields();
        assert_eq!(fields.peer_subject.as_deref(), Some("CN=a.com,O=x\\, CN=forged,C=NL"));
        assert_eq!(fields.peer_issuer, fields.peer_subject);
        assert_eq!(fields.peer_dns_san.as_deref(), Some("a.com"));
        assert_eq!((fields.peer_uri_san, fields.version), (None, None));
    }
}
