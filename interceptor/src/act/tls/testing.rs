//! Authorities, certificates and servers for tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::Secrets;
use crate::decide::traffic::{Origination, Trust};
use crate::policy::Credentials;

/// No credentials at all: every `credentialName` is missing (TLS-10).
pub(crate) struct NoSecrets;

impl Secrets for NoSecrets {
    fn get(&self, _name: &str) -> Option<Arc<Credentials>> {
        None
    }
}

/// An authority and a place for its files.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

/// The serial number of the certificate that is revoked.
pub(crate) const REVOKED: u64 = 666;

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        // Two authorities of one name would be told apart by their signatures only.
        let name = format!("test authority {:?}", &key.public_key_raw()[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer, dir: tempfile::tempdir().expect("a directory") }
    }

    /// A server's certificate for `names`, changed by `change`.
    pub(crate) fn leaf(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        }
    }

    /// A file of this authority's directory with `content`.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("writes");
        path
    }

    /// The authority's own certificate.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Its revocation list: only [`REVOKED`] is on it.
    pub(crate) fn crl(&self) -> String {
        let now = OffsetDateTime::from(crate::clock::wall());
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: now - Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::hours(1),
            next_update: now + Duration::hours(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }

    /// An origination that trusts this authority by file.
    pub(crate) fn trusted(&self) -> Origination {
        let trust = Trust::File(self.file("ca.pem", &self.pem()));
        Origination { trust, ..Origination::default() }
    }
}

/// What a server saw of one handshake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Vec<String>,
    /// Whether the client showed a certificate.
    pub(crate) client_certificate: bool,
}

/// A TLS server.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

/// Serves `leaf` and hands every connection to `handle`. `clients`: the authority that clients need
/// a certificate of.
pub(crate) async fn serve<R>(
    leaf: Leaf,
    clients: Option<&Authority>,
    handle: impl Fn(TlsStream<TcpStream>) -> R + Send + Sync + 'static,
) -> Server
where
    R: Future<Output = ()> + Send + 'static,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).expect("a root");
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let mut config =
        builder.with_single_cert(vec![leaf.certificate], leaf.key).expect("a configuration");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let handle = Arc::new(handle);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (config, noted) = (Arc::clone(&config), Arc::clone(&noted));
            let handle = Arc::clone(&handle);
            tokio::spawn(async move {
                let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else {
                    return;
                };
                let hello = start.client_hello();
                let mut saw = Seen {
                    sni: hello.server_name().map(str::to_owned),
                    alpn: hello.alpn().into_iter().flatten().map(text).collect(),
                    client_certificate: false,
                };
                let Ok(stream) = start.into_stream(config).await else { return };
                saw.client_certificate = stream.get_ref().1.peer_certificates().is_some();
                noted.lock().expect("no panic").push(saw);
                handle(stream).await;
            });
        }
    });
    Server { at, seen }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
