//! Secrets and ConfigMaps as credentials for TLS origination (TLS-6, TLS-9).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::super::fields::{Context, Fields, Findings, text};
use super::super::resource::Meta;
use super::base64::decode;

/// What a credential holds, each part PEM as written; never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Client certificate chain: `tls.crt` or `cert`.
    pub(crate) certificate: Option<Arc<[u8]>>,
    /// Its key: `tls.key` or `key`.
    pub(crate) key: Option<Arc<[u8]>>,
    /// Certificate authorities: `ca.crt` or `cacert`.
    pub(crate) ca: Option<Arc<[u8]>>,
    /// Revocation list: `ca.crl` or `crl`.
    pub(crate) crl: Option<Arc<[u8]>>,
}

impl fmt::Debug for Credentials {
    /// Only which parts are there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate.is_some())
            .field("key", &self.key.is_some())
            .field("ca", &self.ca.is_some())
            .field("crl", &self.crl.is_some())
            .finish()
    }
}

/// The credentials of all namespaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct SecretStore {
    secrets: HashMap<(Arc<str>, Arc<str>), Credentials>,
    config_maps: HashMap<(Arc<str>, Arc<str>), Credentials>,
}

/// Prefix of a `credentialName` that means a ConfigMap.
const CONFIG_MAP: &str = "configmap://";
/// Prefix that means a Secret, as no prefix does.
const SECRET: &str = "kubernetes://";
/// Suffix of the Secret that may hold the CA of another one.
const CA_SUFFIX: &str = "-cacert";

impl SecretStore {
    /// What `credentialName` means for a workload of `namespace`; `None` where there is no such
    /// resource. The CA may stand in a Secret of its own, `NAME-cacert`.
    pub(crate) fn get(&self, namespace: &str, credential_name: &str) -> Option<Credentials> {
        let find = |map: &HashMap<_, Credentials>, name: &str| {
            map.get(&(Arc::from(namespace), Arc::from(name))).cloned()
        };
        if let Some(name) = credential_name.strip_prefix(CONFIG_MAP) {
            return find(&self.config_maps, name);
        }
        let name = credential_name.strip_prefix(SECRET).unwrap_or(credential_name);
        let found = find(&self.secrets, name);
        let beside = find(&self.secrets, &format!("{name}{CA_SUFFIX}"));
        let (Some(beside), true) = (beside, found.as_ref().is_none_or(|own| own.ca.is_none()))
        else {
            return found;
        };
        let own = found.unwrap_or_default();
        Some(Credentials { ca: beside.ca, crl: own.crl.or(beside.crl), ..own })
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
            self.secrets.insert(key_of(meta), credentials(data));
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
        self.config_maps.insert(key_of(meta), Credentials { ca, crl, ..Credentials::default() });
    }
}

fn key_of(meta: &Meta) -> (Arc<str>, Arc<str>) {
    (Arc::clone(&meta.namespace), Arc::clone(&meta.name))
}

/// The parts by either of their names; the generic one goes first, as in Istio.
fn credentials(mut data: BTreeMap<String, Vec<u8>>) -> Credentials {
    let mut part = |generic: &str, tls: &str| -> Option<Arc<[u8]>> {
        let found = data.remove(generic).or_else(|| data.remove(tls))?;
        (!found.is_empty()).then(|| found.into())
    };
    Credentials {
        certificate: part("cert", "tls.crt"),
        key: part("key", "tls.key"),
        ca: part("cacert", "ca.crt"),
        crl: part("crl", "ca.crl"),
    }
}
