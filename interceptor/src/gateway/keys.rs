//! The gateway's certificate, and the authority that signs its clients' ones: read anew when a file changes.
//! Connections that are open go on as they began.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// No file of these is longer.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Where they are.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// The gateway's certificate, with what lies between it and the root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs the nodes' certificates.
    pub client_ca: PathBuf,
    /// Which of those were revoked; without it, none.
    pub client_crl: Option<PathBuf>,
}

/// Why nodes cannot be met with them.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it must.
    #[error("{path} holds no usable {what}", path = .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What was wanted of it.
        what: &'static str,
    },
}

/// What they are now.
#[derive(Debug)]
pub struct Keys {
    files: KeyFiles,
    protocols: &'static [&'static [u8]],
    provider: Arc<CryptoProvider>,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    made_of: Stamp,
    config: Arc<ServerConfig>,
}

type Stamp = Vec<Option<(SystemTime, u64)>>;

impl Keys {
    /// Reads them; `protocols` are those of ALPN that are spoken inside.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn read(files: KeyFiles, protocols: &'static [&'static [u8]]) -> Result<Self, KeysError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made_of = files.stamp();
        let config = files.config(&provider, protocols)?;
        Ok(Self { files, protocols, provider, kept: Mutex::new(Kept { made_of, config }) })
    }

    /// For the next connection. Files that changed and cannot be used leave what was good in force;
    /// that is said once.
    pub fn now(&self) -> Arc<ServerConfig> {
        let stamp = self.files.stamp();
        let mut kept = self.lock();
        if kept.made_of != stamp {
            match self.files.config(&self.provider, self.protocols) {
                Ok(config) => kept.config = config,
                Err(error) => {
                    eprintln!(
                        "interceptor: the changed certificates cannot be used, the former ones stay: \
                         {error}"
                    );
                }
            }
            kept.made_of = stamp;
        }
        Arc::clone(&kept.config)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyFiles {
    fn stamp(&self) -> Stamp {
        let look = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        let Self { certificate, key, client_ca, client_crl } = self;
        [certificate, key, client_ca].into_iter().chain(client_crl).map(look).collect()
    }

    fn config(
        &self,
        provider: &Arc<CryptoProvider>,
        protocols: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, KeysError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.client_ca)? {
            roots.add(authority).map_err(|_| unusable(&self.client_ca, "CA certificate"))?;
        }
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if let Some(path) = &self.client_crl {
            let wrong = || unusable(path, "revocation list");
            let pem = read(path)?;
            let lists = CertificateRevocationListDer::pem_slice_iter(&pem);
            let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(|_| wrong())?;
            if lists.is_empty() {
                return Err(wrong());
            }
            verifier = verifier.with_crls(lists).enforce_revocation_expiration();
        }
        let verifier = verifier.build().map_err(|_| unusable(&self.client_ca, "CA certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| unusable(&self.key, "key"))?;
        let wrong = |_| unusable(&self.certificate, "certificate for that key");
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(wrong)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // Every handshake shows a certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let pem = read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = read.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| unusable(path, "certificate"))
}

fn unusable(path: &Path, what: &'static str) -> KeysError {
    KeysError::Unusable { path: path.to_owned(), what }
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    let failed = |source| KeysError::File { path: path.to_owned(), source };
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() || about.len() > FILE_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(path).map_err(failed)
}
