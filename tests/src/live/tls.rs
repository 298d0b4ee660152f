//! Certificates of a scenario: what servers show, what secrets hold, what clients check.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};

use super::behaviour::Server;
use crate::ca::{Authority, DEFAULT_NAME};

/// What is signed by the world's authority, or pretends to be.
pub struct Certificates {
    authority: Arc<Authority>,
    roots: Arc<RootCertStore>,
}

impl Certificates {
    /// Those of this authority.
    ///
    /// # Errors
    /// When its certificate can't be read back.
    pub fn new(authority: Arc<Authority>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
        Ok(Self { authority, roots: Arc::new(roots) })
    }

    /// How a server of this kind shakes hands with a client that asked for `name`.
    ///
    /// # Errors
    /// When no certificate can carry the name.
    pub fn server(&self, server: &Server, name: Option<&str>) -> Result<Arc<ServerConfig>> {
        let asked = name.unwrap_or(DEFAULT_NAME);
        let key = match server {
            Server::OtherName(other) => self.authority.leaf(other)?,
            Server::SelfSigned => Arc::new(self_signed(asked)?),
            _ => self.authority.leaf(asked)?,
        };
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&provider),
        );
        let verifier = match server {
            Server::WantsCertificate => verifier.build()?,
            _ => verifier.allow_unauthenticated().build()?,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

fn self_signed(name: &str) -> Result<CertifiedKey> {
    let pair = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![name.to_owned()])?
        .self_signed(&pair)
        .with_context(|| format!("a certificate for {name}"))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    Ok(CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&key)?))
}
