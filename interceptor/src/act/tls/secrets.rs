//! Credentials by name: what `credentialName` stands for.

use std::fmt;
use std::sync::Arc;

/// A TLS credential, PEM throughout. Its `Debug` shows no content.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Certificate chain that we show.
    pub certificate: Option<Vec<u8>>,
    /// Its private key.
    pub key: Option<Vec<u8>>,
    /// Authorities that servers are verified against.
    pub ca: Option<Vec<u8>>,
    /// Revocation list.
    pub crl: Option<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate.is_some())
            .field("key", &self.key.is_some())
            .field("ca", &self.ca.is_some())
            .field("crl", &self.crl.is_some())
            .finish()
    }
}

/// Where credentials come from.
pub trait Secrets: Send + Sync {
    /// The credential called `name`, as it is now; `None`: there is none, or it may not be read.
    fn get(&self, name: &str) -> Option<Arc<Credentials>>;
}

/// No credentials at all: every `credentialName` is missing (TLS-10).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get(&self, _name: &str) -> Option<Arc<Credentials>> {
        None
    }
}
