//! TLS that the proxy originates (section 12, T-44, T-45): whom to name, whom to trust, what to
//! show, and what a failure is called.
//!
//! TLS 1.2 and 1.3 only. Nothing is resumed: every handshake verifies anew, and no ticket passes
//! from one origin or workload to another.

mod material;
mod secrets;
mod session;
mod verify;

use std::io;
use std::sync::Arc;

use rustls::client::{Resumption, danger::ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::decide::traffic::{Origination, Verify};
use material::Library;
use verify::{Verifier, Wanted};

pub use material::{MaterialError, Stamp};
pub use secrets::Secrets;
pub use session::TlsSession;

/// What the application protocol negotiation offers (TLS-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// Nothing: the traffic is not HTTP.
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The rule cannot be carried out: nothing was sent.
    #[error("TLS cannot be originated here: {0}")]
    Impossible(&'static str),
    /// A certificate, key, list or secret is missing or broken: nothing was sent.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The handshake failed: no byte of the request was sent.
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
}

impl TlsError {
    /// The failure as the access log prints it (LOG-49), in the words of the library that people
    /// know from it: `TLS_error:|…:SSL_routines:OPENSSL_internal:REASON:TLS_error_end`, where it is
    /// about the certificate followed by what is wrong with it.
    pub fn details(&self) -> String {
        let Self::Handshake(error) = self else {
            return format!("TLS_error:_{self}").replace(' ', "_");
        };
        let rustls = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
        let (code, reason, more) = match rustls {
            Some(Error::InvalidCertificate(why)) => {
                (268_435_581, "CERTIFICATE_VERIFY_FAILED".to_owned(), explain(why))
            }
            Some(Error::NoCertificatesPresented) => {
                (268_435_581, "CERTIFICATE_VERIFY_FAILED".to_owned(), "no certificate".to_owned())
            }
            Some(Error::InvalidMessage(_)) => {
                (268_435_703, "WRONG_VERSION_NUMBER".to_owned(), String::new())
            }
            Some(Error::AlertReceived(alert)) => {
                (268_436_496, format!("ALERT_{}", alert_name(*alert)), String::new())
            }
            Some(other) => (268_435_612, "HANDSHAKE_FAILURE".to_owned(), other.to_string()),
            // Hung up in the middle.
            None => (268_435_612, "HANDSHAKE_FAILURE".to_owned(), error.to_string()),
        };
        let more = if more.is_empty() { more } else { format!(":{more}") };
        format!("TLS_error:|{code}:SSL_routines:OPENSSL_internal:{reason}{more}:TLS_error_end")
            .replace(' ', "_")
    }
}

fn explain(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is for another name".into()
        }
        CertificateError::UnknownIssuer => "unknown issuer".into(),
        CertificateError::Revoked => "certificate is revoked".into(),
        CertificateError::InvalidPurpose => "certificate is not for servers".into(),
        other => other.to_string(),
    }
}

/// In the form that the other library prints: `HANDSHAKE_FAILURE`.
fn alert_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    for c in format!("{alert:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Originates TLS; shared by all connections of a site.
pub struct Originator {
    provider: Arc<CryptoProvider>,
    library: Library,
    secrets: Arc<dyn Secrets>,
}

impl std::fmt::Debug for Originator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Originator").finish_non_exhaustive()
    }
}

impl Originator {
    /// With the credentials of `secrets`.
    pub fn new(secrets: Arc<dyn Secrets>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Self { provider, library: Library::default(), secrets }
    }

    /// What a handshake as `origination` has it would be made of now: a connection that was made of
    /// anything else must not serve any more. Reads no file, only its times.
    ///
    /// # Errors
    /// [`TlsError::Material`]: some of it is missing.
    pub async fn stamp(&self, origination: &Origination) -> Result<Stamp, TlsError> {
        Ok(self.library.stamp(origination, &*self.secrets).await?)
    }

    /// Readies a handshake as `origination` has it. `host`: the request's original Host, with or
    /// without its port (TLS-5, TLS-7). Reads files and secrets, sends nothing: a rule that cannot
    /// be carried out fails before any connection is made.
    ///
    /// # Errors
    /// [`TlsError::Impossible`] and [`TlsError::Material`].
    pub async fn prepare(
        &self,
        origination: &Origination,
        host: Option<&str>,
        alpn: Alpn,
    ) -> Result<Handshake, TlsError> {
        if origination.verify == Verify::Impossible {
            return Err(TlsError::Impossible("the rule's credentials are not usable here"));
        }
        let host = host.map(without_port);
        let names = wanted_names(origination, host)?;
        let material = self.library.get(origination, &*self.secrets, &self.provider).await?;
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(Verifier::new(
            Arc::clone(&self.provider),
            material.authorities.clone(),
            names,
        ));
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|_| TlsError::Impossible("no TLS version is left"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &material.identity {
            None => config.with_no_client_auth(),
            Some(identity) => config
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity)))),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = match alpn {
            Alpn::None => vec![],
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
            Alpn::Http2 => vec![b"h2".to_vec()],
        };
        let name = match (origination.sni.as_deref(), host) {
            (Some(sni), _) => Some(
                ServerName::try_from(sni.to_owned())
                    .map_err(|_| TlsError::Impossible("the rule's sni is no host name"))?,
            ),
            // A Host that is no name at all is nothing to send; the verifier decides.
            (None, host) => host.and_then(|host| ServerName::try_from(host.to_owned()).ok()),
        };
        // An address is never sent as a name (TLS-5); rustls sees to that. What stands in for a
        // name that is not sent does not matter: the verifier has its own.
        config.enable_sni = name.is_some();
        let name =
            name.unwrap_or_else(|| ServerName::from(std::net::Ipv4Addr::UNSPECIFIED).to_owned());
        Ok(Handshake { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

/// A handshake that can begin.
pub struct Handshake {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Handshake {
    /// Speaks TLS on `stream`.
    ///
    /// # Errors
    /// [`TlsError::Handshake`].
    pub async fn run<S>(self, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.connector.connect(self.name, stream).await.map_err(TlsError::Handshake)
    }
}

/// The names of which the server must have one; `None`: any will do (TLS-7, TLS-8).
fn wanted_names(
    origination: &Origination,
    host: Option<&str>,
) -> Result<Option<Vec<Wanted>>, TlsError> {
    match origination.verify {
        Verify::Nothing | Verify::ChainOnly => Ok(None),
        Verify::Impossible => Err(TlsError::Impossible("the rule cannot be carried out")),
        Verify::ChainAndName if !origination.subject_alt_names.is_empty() => {
            Ok(Some(origination.subject_alt_names.iter().map(|name| Wanted::parse(name)).collect()))
        }
        Verify::ChainAndName => match host.or(origination.sni.as_deref()) {
            Some(name) => Ok(Some(vec![Wanted::parse(name)])),
            None => Err(TlsError::Impossible(
                "nothing names the server; list its names in subjectAltNames or set sni",
            )),
        },
    }
}

/// A Host without its port and brackets.
fn without_port(host: &str) -> &str {
    if let Some((literal, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return literal;
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
