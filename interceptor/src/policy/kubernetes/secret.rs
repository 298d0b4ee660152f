//! Secrets and ConfigMaps as credentials: for TLS origination (TLS-6, TLS-9), and to log in with.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::super::base64::decode;
use super::super::fields::{Context, Fields, Findings, text};
use super::super::metadata::Meta;

/// A credential, the parts of TLS in PEM as written. Its `Debug` shows no content.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Certificate chain that we show: `tls.crt` or `cert`.
    pub certificate: Option<Arc<[u8]>>,
    /// Its private key: `tls.key` or `key`.
    pub key: Option<Arc<[u8]>>,
    /// Authorities that servers are verified against: `ca.crt` or `cacert`.
    pub ca: Option<Arc<[u8]>>,
    /// Revocation list: `ca.crl` or `crl`.
    pub crl: Option<Arc<[u8]>>,
    /// Who we log in as: `username`.
    pub user: Option<Arc<[u8]>>,
    /// And with what: `password`.
    pub password: Option<Arc<[u8]>>,
}

impl fmt::Debug for Credentials {
    /// Only which parts are there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate.is_some())
            .field("key", &self.key.is_some())
            .field("ca", &self.ca.is_some())
            .field("crl", &self.crl.is_some())
            .field("user", &self.user.is_some())
            .field("password", &self.password.is_some())
            .finish()
    }
}

/// The credentials of all namespaces.
#[derive(Debug, Default)]
pub(in crate::policy) struct SecretStore {
    namespaces: HashMap<Arc<str>, Keyring>,
}

/// The credentials that the workloads of one namespace may use: their own namespace's (TLS-9).
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    secrets: HashMap<Arc<str>, Arc<Credentials>>,
    config_maps: HashMap<Arc<str>, Arc<Credentials>>,
}

/// Prefix of a `credentialName` that means a ConfigMap.
const CONFIG_MAP: &str = "configmap://";
/// Prefix that means a Secret, as no prefix does.
const SECRET: &str = "kubernetes://";
/// Suffix of the Secret that may hold the CA of another one.
const CA_SUFFIX: &str = "-cacert";

impl Keyring {
    /// What `credentialName` means; `None` where there is no such resource. The CA may stand in a
    /// Secret of its own, `NAME-cacert`.
    pub fn get(&self, credential_name: &str) -> Option<Arc<Credentials>> {
        if let Some(name) = credential_name.strip_prefix(CONFIG_MAP) {
            return self.config_maps.get(name).cloned();
        }
        let name = credential_name.strip_prefix(SECRET).unwrap_or(credential_name);
        let found = self.secrets.get(name);
        let beside = self.secrets.get(format!("{name}{CA_SUFFIX}").as_str());
        let (Some(beside), true) = (beside, found.is_none_or(|own| own.ca.is_none())) else {
            return found.cloned();
        };
        let own = found.map(|own| Credentials::clone(own)).unwrap_or_default();
        let crl = own.crl.or_else(|| beside.crl.clone());
        Some(Arc::new(Credentials { ca: beside.ca.clone(), crl, ..own }))
    }
}

impl SecretStore {
    /// Those that a workload of `namespace` may use.
    pub(in crate::policy) fn keyring(&self, namespace: &str) -> Keyring {
        self.namespaces.get(namespace).cloned().unwrap_or_default()
    }

    /// Adds a Secret, read from the whole resource.
    pub(in crate::policy) fn read_secret(
        &mut self,
        meta: &Meta,
        top: &mut Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) {
        let mut data = BTreeMap::new();
        let mut good = true;
        for (key, node) in top.entries("data", cx, out).unwrap_or_default() {
            let Some(text) = text(node, cx, out) else { continue };
            if let Some(bytes) = decode(&text.value) {
                data.insert(key, bytes);
            } else {
                good = false;
                // The text itself stays unsaid: it may be a part of the secret.
                out.rejected.push(cx.notice(text.at, &text.path, "not base64"));
            }
        }
        for (key, node) in top.entries("stringData", cx, out).unwrap_or_default() {
            if let Some(text) = text(node, cx, out) {
                data.insert(key, text.value.into_bytes());
            }
        }
        if good {
            let secrets = &mut self.of(meta).secrets;
            secrets.insert(Arc::clone(&meta.name), Arc::new(credentials(data)));
        }
    }

    /// Adds a ConfigMap, read from the whole resource.
    pub(in crate::policy) fn read_config_map(
        &mut self,
        meta: &Meta,
        top: &mut Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) {
        let mut data = BTreeMap::new();
        for (key, node) in top.entries("data", cx, out).unwrap_or_default() {
            if let Some(text) = text(node, cx, out) {
                data.insert(key, text.value.into_bytes());
            }
        }
        let Credentials { ca, crl, .. } = credentials(data);
        let found = Arc::new(Credentials { ca, crl, ..Credentials::default() });
        self.of(meta).config_maps.insert(Arc::clone(&meta.name), found);
    }

    fn of(&mut self, meta: &Meta) -> &mut Keyring {
        self.namespaces.entry(Arc::clone(&meta.namespace)).or_default()
    }
}

/// The parts by either of their names; the generic one goes first, as in Istio.
fn credentials(mut data: BTreeMap<String, Vec<u8>>) -> Credentials {
    let (user, password) = (data.remove("username"), data.remove("password"));
    let filled = |found: Vec<u8>| (!found.is_empty()).then(|| found.into());
    let mut part = |generic: &str, tls: &str| -> Option<Arc<[u8]>> {
        filled(data.remove(generic).or_else(|| data.remove(tls))?)
    };
    Credentials {
        certificate: part("cert", "tls.crt"),
        key: part("key", "tls.key"),
        ca: part("cacert", "ca.crt"),
        crl: part("crl", "ca.crl"),
        user: user.and_then(filled),
        password: password.and_then(filled),
    }
}
