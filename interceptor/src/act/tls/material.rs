//! Certificates, keys and lists: read from files and secrets, kept until one of them changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::OnceCell;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::secrets::Secrets;
use super::verify::Authorities;
use crate::decide::traffic::{Identity, Origination, Trust, Verify};
use crate::policy::Credentials;

/// No certificate file is larger (the system's bundle has some 200 KiB).
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// Originations kept ready; a policy has fewer.
const KEPT_MAX: usize = 256;

/// Why no TLS can be made.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or secret does not hold what it must.
    #[error("{place} holds no usable {what}")]
    Unusable {
        /// The file's path or the secret's name.
        place: String,
        /// What was wanted of it.
        what: &'static str,
    },
    /// There is no such secret, or it may not be read (TLS-10).
    #[error("there is no credential {0:?} here")]
    NoSecret(String),
    /// The operating system has no roots.
    #[error("the operating system has no trusted certificates")]
    NoRoots,
}

/// What one origination needs, parsed.
#[derive(Debug)]
pub(super) struct Material {
    /// `None` where nothing is verified.
    pub(super) authorities: Option<Arc<Authorities>>,
    pub(super) identity: Option<Arc<CertifiedKey>>,
}

/// What material was made of; equal again means that nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp {
    files: Vec<(PathBuf, Option<SystemTime>, u64)>,
    /// Of [`Trust::Secret`].
    trust: Option<Arc<Credentials>>,
    /// Of [`Identity::Secret`].
    identity: Option<Arc<Credentials>>,
}

struct Kept {
    origination: Origination,
    made_of: Stamp,
    material: Arc<Material>,
}

/// The material of every origination in use.
#[derive(Default)]
pub(super) struct Library {
    kept: Mutex<Vec<Kept>>,
    system: OnceCell<RootCertStore>,
}

impl Library {
    /// The material of `origination`: as kept, or read anew where a file or secret changed.
    ///
    /// # Errors
    /// [`MaterialError`]; then there is no TLS, and never plaintext instead.
    pub(super) async fn get(
        &self,
        origination: &Origination,
        secrets: &dyn Secrets,
        provider: &CryptoProvider,
    ) -> Result<Arc<Material>, MaterialError> {
        let stamp = self.stamp(origination, secrets).await?;
        {
            let kept = self.lock();
            let same = kept.iter().find(|one| one.origination == *origination);
            if let Some(one) = same.filter(|one| one.made_of == stamp) {
                return Ok(Arc::clone(&one.material));
            }
        }
        let authorities = match origination.verify {
            Verify::Nothing => None,
            _ => Some(Arc::new(self.authorities(origination, &stamp).await?)),
        };
        let identity = match &origination.identity {
            None => None,
            Some(identity) => Some(Arc::new(certified_key(identity, &stamp, provider).await?)),
        };
        let material = Arc::new(Material { authorities, identity });
        let mut kept = self.lock();
        kept.retain(|one| one.origination != *origination);
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push(Kept {
            origination: origination.clone(),
            made_of: stamp,
            material: Arc::clone(&material),
        });
        Ok(material)
    }

    /// What the material of `origination` would be made of now. Where something is missing, what was
    /// made of it before is forgotten: no key outlives its secret.
    ///
    /// # Errors
    /// [`MaterialError::File`] and [`MaterialError::NoSecret`].
    pub(super) async fn stamp(
        &self,
        origination: &Origination,
        secrets: &dyn Secrets,
    ) -> Result<Stamp, MaterialError> {
        let stamp = stamp(origination, secrets).await;
        stamp.inspect_err(|_| self.lock().retain(|one| one.origination != *origination))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn authorities(
        &self,
        origination: &Origination,
        stamp: &Stamp,
    ) -> Result<Authorities, MaterialError> {
        let mut crl: Option<(Arc<[u8]>, String)> = match &origination.crl {
            None => None,
            Some(path) => Some((read(path).await?.into(), path.display().to_string())),
        };
        let roots = match &origination.trust {
            Trust::System => self.system.get_or_try_init(system_roots).await?.clone(),
            Trust::File(path) => roots(&read(path).await?, &path.display().to_string())?,
            Trust::Secret(name) => {
                let secret = given(&stamp.trust, name)?;
                if crl.is_none() {
                    crl = secret.crl.clone().map(|pem| (pem, name.clone()));
                }
                let missing = || unusable(name, "CA certificate");
                roots(secret.ca.as_deref().ok_or_else(missing)?, name)?
            }
        };
        let crls = match crl {
            None => Vec::new(),
            Some((pem, place)) => crls(&pem, &place)?,
        };
        Ok(Authorities { roots, crls })
    }
}

async fn stamp(origination: &Origination, secrets: &dyn Secrets) -> Result<Stamp, MaterialError> {
    let mut stamp = Stamp::default();
    let mut paths: Vec<&PathBuf> = origination.crl.iter().collect();
    match &origination.trust {
        Trust::System => {}
        Trust::File(path) => paths.push(path),
        Trust::Secret(name) => stamp.trust = Some(secret(secrets, name)?),
    }
    match &origination.identity {
        None => {}
        Some(Identity::Files { certificate, key }) => paths.extend([certificate, key]),
        Some(Identity::Secret(name)) => stamp.identity = Some(secret(secrets, name)?),
    }
    for path in paths {
        let about = tokio::fs::metadata(path).await;
        let about = about.map_err(|source| MaterialError::File { path: path.clone(), source })?;
        stamp.files.push((path.clone(), about.modified().ok(), about.len()));
    }
    Ok(stamp)
}

fn secret(secrets: &dyn Secrets, name: &str) -> Result<Arc<Credentials>, MaterialError> {
    secrets.get(name).ok_or_else(|| MaterialError::NoSecret(name.to_owned()))
}

/// A secret of a stamp.
fn given<'a>(
    secret: &'a Option<Arc<Credentials>>,
    name: &str,
) -> Result<&'a Credentials, MaterialError> {
    secret.as_deref().ok_or_else(|| MaterialError::NoSecret(name.to_owned()))
}

fn unusable(place: &str, what: &'static str) -> MaterialError {
    MaterialError::Unusable { place: place.to_owned(), what }
}

async fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let failed = |source| MaterialError::File { path: path.to_owned(), source };
    let about = tokio::fs::metadata(path).await.map_err(failed)?;
    if !about.is_file() || about.len() > FILE_MAX {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    tokio::fs::read(path).await.map_err(failed)
}

/// The operating system's roots; those that do not parse are left out.
async fn system_roots() -> Result<RootCertStore, MaterialError> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    if let Ok(loaded) = loaded {
        roots.add_parsable_certificates(loaded.certs);
    }
    if roots.is_empty() { Err(MaterialError::NoRoots) } else { Ok(roots) }
}

fn roots(pem: &[u8], place: &str) -> Result<RootCertStore, MaterialError> {
    let wrong = || unusable(place, "CA certificate");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).ok_or_else(wrong)? {
        roots.add(certificate).map_err(|_| wrong())?;
    }
    if roots.is_empty() { Err(wrong()) } else { Ok(roots) }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()
}

fn crls(pem: &[u8], place: &str) -> Result<Vec<CertRevocationList<'static>>, MaterialError> {
    let wrong = || unusable(place, "revocation list");
    let mut crls = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(pem) {
        let der = der.map_err(|_| wrong())?;
        crls.push(OwnedCertRevocationList::from_der(&der).map_err(|_| wrong())?.into());
    }
    // A list that was asked for and holds nothing must not read as "nothing is revoked".
    if crls.is_empty() { Err(wrong()) } else { Ok(crls) }
}

async fn certified_key(
    identity: &Identity,
    stamp: &Stamp,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, MaterialError> {
    let (certificate, key, place): (Arc<[u8]>, Arc<[u8]>, _) = match identity {
        Identity::Files { certificate, key } => {
            let place = certificate.display().to_string();
            (read(certificate).await?.into(), read(key).await?.into(), place)
        }
        Identity::Secret(name) => {
            let secret = given(&stamp.identity, name)?;
            let missing = || unusable(name, "client certificate and key");
            let certificate = secret.certificate.clone().ok_or_else(missing)?;
            (certificate, secret.key.clone().ok_or_else(missing)?, name.clone())
        }
    };
    let wrong = || unusable(&place, "client certificate and key");
    let chain = certificates(&certificate).filter(|chain| !chain.is_empty()).ok_or_else(wrong)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| wrong())?;
    CertifiedKey::from_der(chain, key, provider).map_err(|_| wrong())
}
