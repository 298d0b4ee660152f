//! A throw-away certificate authority that signs a leaf for whatever name a client asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The serial number of every leaf, for revocation lists.
const LEAF_SERIAL: u64 = 0x51_0001;
/// A serial number that no certificate has.
const NOBODYS_SERIAL: u64 = 0x51_0002;

/// The name on the certificate of a client that sent no SNI.
pub const DEFAULT_NAME: &str = "no-name.invalid";

/// A certificate authority that lives as long as the value; its key never touches a disk.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority with a key of its own.
    ///
    /// # Errors
    /// When the key can't be generated or the certificate not be signed.
    pub fn generate() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "interceptor walkthrough CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            leaf_key: KeyPair::generate()?,
            leaves: Mutex::new(HashMap::new()),
        })
    }

    /// The authority's certificate as PEM, what `CURL_CA_BUNDLE` points at.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A client's certificate and its key as PEM.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn client(&self, name: &str) -> Result<(String, String)> {
        self.signed(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's, with a key of its own.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn server(&self, name: &str) -> Result<(String, String)> {
        self.signed(name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn signed(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A revocation list as PEM: of the leaves that servers show, or of a certificate that nobody
    /// has.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn revocations(&self, leaves: bool) -> Result<String> {
        #[expect(clippy::disallowed_methods, reason = "certificates hold by the wall clock")]
        let now = time::OffsetDateTime::now_utc();
        let revoked = RevokedCertParams {
            serial_number: if leaves { LEAF_SERIAL.into() } else { NOBODYS_SERIAL.into() },
            revocation_time: now - time::Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::days(1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// A certificate for one name (`*.example.com` too), made once and then remembered.
    ///
    /// # Errors
    /// When the name isn't one that a certificate can carry.
    pub fn leaf(&self, name: &str) -> Result<Arc<CertifiedKey>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(name) {
            return Ok(Arc::clone(leaf));
        }
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(LEAF_SERIAL.into());
        let certificate = params.signed_by(&self.leaf_key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let chain = vec![certificate.der().clone(), self.issuer.der().clone()];
        let leaf = Arc::new(CertifiedKey::new(chain, any_supported_type(&key)?));
        leaves.insert(name.to_owned(), Arc::clone(&leaf));
        Ok(leaf)
    }
}

impl ResolvesServerCert for Authority {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.leaf(hello.server_name().unwrap_or(DEFAULT_NAME)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_signed_once_and_remembered() {
        let authority = Authority::generate().expect("an authority");
        let first = authority.leaf("*.wikipedia.org").expect("a wildcard leaf");
        let again = authority.leaf("*.wikipedia.org").expect("the same leaf");
        assert!(Arc::ptr_eq(&first, &again));
        assert!(authority.pem().starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(authority.leaf("bad\u{e9}name").is_err());
    }
}
