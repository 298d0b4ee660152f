//! Whether a server is who it must be (TLS-6 to TLS-8, T-44): chain, validity, usage, revocation,
//! and one of the wanted names among its subject alternative names. A name that stands in the
//! common name only counts for nothing.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder,
};
use x509_parser::extensions::GeneralName;

/// What a chain is verified against.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: RootCertStore,
    pub(super) crls: Vec<CertRevocationList<'static>>,
}

/// A name that the server must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A DNS name or an address; the certificate's wildcards count.
    Server(ServerName<'static>),
    /// A URI, to the letter.
    Uri(String),
    /// Text that can be no name: no server has it.
    Never,
}

impl Wanted {
    /// Reads a subject alternative name as a rule lists it.
    pub(super) fn parse(text: &str) -> Self {
        if text.contains("://") {
            return Self::Uri(text.to_owned());
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Self::Server(ServerName::from(ip));
        }
        ServerName::try_from(text.to_owned()).map_or(Self::Never, Self::Server)
    }
}

/// Verifies the server of one handshake.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: nothing is checked but that the server has the key it shows (`insecureSkipVerify`).
    authorities: Option<Arc<Authorities>>,
    /// `None`: any name will do.
    names: Option<Vec<Wanted>>,
}

impl Verifier {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        authorities: Option<Arc<Authorities>>,
        names: Option<Vec<Wanted>>,
    ) -> Self {
        Self { provider, authorities, names }
    }

    fn verify_chain(
        &self,
        authorities: &Authorities,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let anchors: &[TrustAnchor<'_>] = &authorities.roots.roots;
        let crls: Vec<_> = authorities.crls.iter().collect();
        let revocation = match RevocationOptionsBuilder::new(&crls) {
            // No list: nothing is revoked.
            Err(_) => None,
            // The whole chain, and no list may be out of date; an issuer without a list is refused.
            Ok(options) => Some(options.with_expiration_policy(ExpirationPolicy::Enforce).build()),
        };
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            )
            .map(|_| ())
            .map_err(explain)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = EndEntityCert::try_from(end_entity).map_err(explain)?;
        self.verify_chain(authorities, &certificate, intermediates, now)?;
        let has = |wanted: &Wanted| match wanted {
            Wanted::Server(name) => certificate.verify_is_valid_for_subject_name(name).is_ok(),
            Wanted::Uri(uri) => has_uri(end_entity, uri),
            Wanted::Never => false,
        };
        match &self.names {
            Some(names) if !names.iter().any(has) => {
                Err(Error::InvalidCertificate(CertificateError::NotValidForName))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether `uri` is among the certificate's alternative names.
fn has_uri(certificate: &CertificateDer<'_>, uri: &str) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names
        .value
        .general_names
        .iter()
        .any(|name| matches!(name, GeneralName::URI(have) if *have == uri))
}

/// The library's reason as the error that its handshake carries.
fn explain(error: webpki::Error) -> Error {
    use webpki::Error as E;
    let reason = match error {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        E::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_7_names_as_rules_list_them() {
        let server = |text: &str| {
            Wanted::Server(ServerName::try_from(text.to_owned()).expect("a server name"))
        };
        for (text, expected) in [
            ("a.com", server("a.com")),
            ("192.0.2.1", server("192.0.2.1")),
            ("[2001:db8::1]", server("2001:db8::1")),
            ("2001:db8::1", server("2001:db8::1")),
            ("spiffe://c/ns/x", Wanted::Uri("spiffe://c/ns/x".into())),
            ("a b", Wanted::Never),
            ("", Wanted::Never),
        ] {
            assert_eq!(Wanted::parse(text), expected, "{text}");
        }
    }
}
